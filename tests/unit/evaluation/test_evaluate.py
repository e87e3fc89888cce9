"""Evaluations of scorers whose answers are known, and of real models."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_rlhf.data import InvalidRowError, PreferenceDataModule, RowsSource
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.evaluation import (
    Comparison,
    ModelScorer,
    Scored,
    Scorer,
    compare_rewards,
    disagreements,
    evaluate_reward,
    read_comparisons,
)
from lit_rlhf.evaluation.comparisons import text_of
from lit_rlhf.evaluation.measures import doubt
from lit_rlhf.evaluation.texts import POLITE
from lit_rlhf.metrics import Estimate, wilson_interval
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec, export_reward
from lit_rlhf.modules import RewardModelModule
from lit_rlhf.objectives import BradleyTerry, HeadEnsemble
from lit_rlhf.prompt_form import PromptForm
from lit_rlhf.report.reward_page import report_reward
from lit_rlhf.testing import tiny_preferences, tiny_rankings
from lit_rlhf.testing.preferences import KIND
from tests.tolerances import FP32_MODEL
from tests.unit.modules.policies import make_trainer


class ByText(Scorer):
    """Scores each answer by a function of its text; refuses a prompt with `refused` in it."""

    def __init__(self, worth: Callable[[str], float], name: str = "by text") -> None:
        self.worth, self.name = worth, name

    def score(
        self, comparisons: Sequence[Comparison], tell: Callable[[int], None] = lambda _: None
    ) -> list[Scored | InvalidRowError]:
        return [
            InvalidRowError("refused", "")
            if "refused" in text_of(each.prompt)
            else Scored(torch.tensor([self.worth(text_of(answer)) for answer in each.answers]))
            for each in comparisons
        ]


def is_kind(text: str) -> float:
    return float(any(word in text for word in KIND))


def read(rows: Sequence[dict[str, Any]]) -> Any:
    return read_comparisons(RowsSource([dict(row) for row in rows]))


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("rm") / "export"
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir)), lm_head=False, trainable=False)
    backbone.add_head("reward")
    export_reward(backbone, path, merge=True)
    return path


def test_a_perfect_and_a_perverse_model() -> None:
    data = read(tiny_preferences(200))
    good = evaluate_reward(ByText(is_kind), data)
    bad = evaluate_reward(ByText(lambda text: -is_kind(text)), data)
    assert good.accuracy.value == 1.0
    assert 0.97 < good.accuracy.low < 1.0
    assert bad.accuracy.value == 0.0
    assert good.margin == (1.0, 1.0, 1.0)
    assert good.ceiling is None
    assert not good.subsets
    assert not good.sections
    assert good.best_of is None
    constant = evaluate_reward(ByText(lambda _: 1.0), data, perturbed=0)
    assert (constant.accuracy.value, constant.ties, constant.margin_std) == (0.0, 1.0, 0.0)
    assert not constant.turned


def test_subsets_and_what_could_not_be_scored() -> None:
    rows = [
        {**row, "subset": "ab"[i % 2], "prompt": "refused" if i < 3 else row["prompt"]}
        for i, row in enumerate(tiny_preferences(20))
    ]
    found = evaluate_reward(ByText(is_kind), read(rows), perturbed=0)
    assert [(s.name, s.rows) for s in found.subsets] == [("b", 9), ("a", 8)]
    assert found.left_out == {"refused": 3}
    with pytest.raises(DataError, match=r"by text could score nothing of .*: 3 refused"):
        evaluate_reward(ByText(is_kind), read(rows[:3]))


def test_rows_of_one_prompt_are_cases_where_there_is_no_other(tmp_path: Path) -> None:
    answers = [(" kind" if i % 3 else " no", f" so {i}") for i in range(60)]
    rows = [{"prompt": "how?", "chosen": c, "rejected": r} for c, r in answers]
    alone = evaluate_reward(ByText(lambda text: float("kind" in text) - 0.5), read(rows))
    apart = [row | {"prompt": f"how? {i}"} for i, row in enumerate(rows)]
    assert alone.accuracy == wilson_interval(40 / 60, 60)
    assert alone.margin.low < alone.margin.value < alone.margin.high
    other = evaluate_reward(ByText(lambda text: float("kind" in text) - 0.5), read(apart))
    assert (alone.accuracy, alone.margin) == (other.accuracy, other.margin)
    noted, unnoted = (
        report_reward([each], tmp_path / "page.html").read_text() for each in (alone, other)
    )
    assert "All comparisons are of one prompt" in noted
    assert "All comparisons are of one prompt" not in unnoted


def test_every_interval_counts_prompts() -> None:
    """The same rows ten times over say no more of other prompts than once."""
    rows = [dict(row) for row in tiny_rankings(12)]

    def worth(text: str) -> float:
        return is_kind(text) + len(text) % 3

    once, often = (evaluate_reward(ByText(worth), read(rows * n)) for n in (1, 10))

    def intervals(value: Any) -> list[Estimate]:
        if isinstance(value, Estimate):
            return [value]
        parts = list(value.values()) if isinstance(value, dict) else value
        if is_dataclass(parts):
            parts = list(vars(parts).values())
        return (
            [each for part in parts for each in intervals(part)] if isinstance(parts, list) else []
        )

    single, repeated = map(intervals, (vars(once), vars(often)))
    assert len(single) > 12
    for one, ten in zip(single, repeated, strict=True):
        assert ten == pytest.approx(one, nan_ok=True)


def test_perturbations_turn_what_depends_on_them() -> None:
    data = read(tiny_preferences(40))
    polite = ByText(lambda text: is_kind(text) + 2 * text.endswith(POLITE))
    found = {each.change: each for each in evaluate_reward(polite, data).turned}
    assert found["a polite ending of the lowest"].turned.value == 1.0
    assert found["a polite ending"].turned.value == 0.0
    assert found["answers in the other order"].turned.value == 0.0
    strict = ByText(lambda text: is_kind(text) * (text == text.rstrip()))
    found = {each.change: each for each in evaluate_reward(strict, data).turned}
    assert found["a line break at the end"].turned.value == 1.0
    assert found["answers in the other order"].shift == 0.0


def test_a_scorer_that_looks_at_places_is_caught() -> None:
    class First(ByText):
        def score(self, comparisons: Sequence[Comparison], tell: Any = None) -> list[Any]:
            return [Scored(torch.arange(len(each.answers), 0.0, -1.0)) for each in comparisons]

    found = evaluate_reward(First(is_kind), read(tiny_preferences(30)))
    assert found.accuracy.value == 1.0  # the better answer always comes first here
    turned = {each.change: each.turned.value for each in found.turned}
    assert turned["answers in the other order"] == 1.0


def test_rankings_and_sets() -> None:
    found = evaluate_reward(ByText(is_kind), read(tiny_rankings(30, completions=4)))
    assert found.best_of is not None
    curve = [point.value for point in found.best_of.picked]
    assert curve == sorted(curve)
    assert curve[0] == pytest.approx(found.best_of.best[0])
    good, bad = ["it was good", "a fine one"], ["it was bad", "a cold one", "so poor"]
    sets = [{"prompt": "q", "chosen": good[:1], "rejected": bad, "subset": "Math"}]
    ties = [
        {"prompt": f"{way} q", "chosen": good[:n], "rejected": bad, "subset": "Ties", "id": way}
        for way, n in (("ref:1", 1), ("tied:1", 2))
    ]
    found = evaluate_reward(ByText(is_kind), read(sets + ties))
    assert found.sections == {"Math": 1.0, "Ties": pytest.approx(1.01), "mean of sections": 1.005}
    assert found.chance == pytest.approx((0.25 + 0.25 + 0.4) / 3)
    unsure = evaluate_reward(ByText(lambda _: 0.0), read(sets), perturbed=0)
    assert unsure.accuracy.value == 0.25


def test_agreement_beside_the_raters() -> None:
    rows = [{**row, "p_chosen": 0.8, "votes": 5} for row in tiny_preferences(50)]
    found = evaluate_reward(ByText(lambda text: 1.3863 * is_kind(text)), read(rows), perturbed=0)
    assert found.accuracy.value == pytest.approx(0.8)
    assert found.ceiling is not None
    assert (found.ceiling.best, found.ceiling.raters) == pytest.approx((0.8, 0.6))
    assert found.calibration is not None
    assert found.calibration.error < 1e-4
    assert found.calibration.temperature == pytest.approx(1.0, abs=1e-3)


def test_two_models_are_compared_on_what_both_scored() -> None:
    rows = tiny_preferences(80)
    rows[0] = {**rows[0], "prompt": "refused"}
    data = read(rows)
    first = evaluate_reward(ByText(is_kind, "first"), data, perturbed=0)
    half = set(list(KIND)[:2])
    worse = evaluate_reward(
        ByText(lambda text: float(any(w in text for w in half)), "second"), data, perturbed=0
    )
    found = compare_rewards(first, worse)
    known = sum(any(w in row["chosen"] for w in half) for row in rows[1:])
    assert (found.rows, found.both, found.first_only) == (79, known, 79 - known)
    assert found.second_only == found.neither == 0
    assert found.accuracy.value == pytest.approx(known / 79 - 1)
    assert found.accuracy.high < 0
    assert found.p_value < 1e-6
    assert len(found.apart) == 79 - known
    same = compare_rewards(first, first)
    assert (same.p_value, same.accuracy, same.same) == (1.0, (0.0, 0.0, 0.0), 1.0)
    other = evaluate_reward(ByText(is_kind), read([{**rows[1], "prompt": "x"}]), perturbed=0)
    assert compare_rewards(other, other).rows == 1


@pytest.mark.parametrize("layout", ["text", "chat"])
def test_scores_are_those_of_transformers(export: Path, layout: Any) -> None:
    rows = [
        {key: f" {text}" if key != "prompt" else text.strip() for key, text in row.items()}
        for row in tiny_preferences(9)  # no space at the seam, which tokenizers would merge
    ]
    data = read(rows)
    scorer = ModelScorer.load(str(export), layout=layout, batch_tokens=64)
    model = AutoModelForSequenceClassification.from_pretrained(export).eval()
    tokenizer = AutoTokenizer.from_pretrained(export)
    for each, found in zip(data.items, scorer.score(data.items), strict=True):
        assert isinstance(found, Scored)
        for answer, score in zip(each.answers, found.total, strict=True):
            turns = [{"role": "user", "content": each.prompt}]
            turns.append({"role": "assistant", "content": answer})
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            if layout == "text":
                text = f"{each.prompt}{answer}{tokenizer.eos_token}"
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=layout == "text")
            with torch.no_grad():
                wanted = model(**ids).logits[0, 0]
            torch.testing.assert_close(score, wanted, **FP32_MODEL)


def test_layout_follows_what_the_model_has_learned(export: Path) -> None:
    backbone = ModelScorer.load(str(export)).backbone
    assert ModelScorer(backbone, "a").layout == "chat"  # nothing known, and there is a template
    assert ModelScorer(backbone, "a", learned=PromptForm("text", "", None)).layout == "text"
    chat = PromptForm.of_chats(backbone.tokenizer, ["Be brief."])
    assert ModelScorer(backbone, "a", learned=chat).layout == "chat"
    assert ModelScorer(backbone, "a", "text", chat).layout == "text"


def test_what_is_longer_than_the_model_reads_is_counted(export: Path) -> None:
    rows = tiny_preferences(4)
    rows[2] = {**rows[2], "chosen": "good " * 5000}
    found = evaluate_reward(ModelScorer.load(str(export)), read(rows), perturbed=0)
    assert found.left_out == {"longer than the model reads": 1}
    assert [one.key[0] for one in found.scored] == [0, 1, 3]


@pytest.mark.parametrize("loss", [BradleyTerry(), HeadEnsemble(members=3)])
def test_a_checkpoint_scores_as_its_exports(
    loss: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = RowsSource([dict(row) for row in tiny_preferences(32)])
    module = RewardModelModule(
        ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=2)),
        loss,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    )
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, PreferenceDataModule(rows, tokenizer=str(tiny_model_dir)))
    trainer.save_checkpoint(tmp_path / "rm.ckpt")
    data, found = read_comparisons(rows), {}
    for name in ("rm.ckpt", "merged", "adapter"):
        if name != "rm.ckpt":
            module.export(tmp_path / name, merge=name == "merged")
        scorer = ModelScorer.load(str(tmp_path / name))
        assert scorer.layout == "text"  # as it was trained, though there is a chat template
        found[name] = evaluate_reward(scorer, data, perturbed=0)
    scores = [torch.cat([one.scores for one in each.scored]) for each in found.values()]
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], **FP32_MODEL)
    members = found["rm.ckpt"].doubt
    assert found["merged"].doubt is None
    if isinstance(loss, HeadEnsemble):
        assert members is not None
        assert (members.members, len(members.quarters)) == (3, 4)
    else:
        assert members is None


def test_disagreement_that_foretells_mistakes() -> None:
    right = torch.tensor([True, True, False, True, True, False, True, True])
    scores = [torch.tensor([[1.0, 0.0], [1.0, 0.0]]) for _ in right]
    for place in (2, 5):
        scores[place] = torch.tensor([[3.0, 0.0], [-2.0, 2.0]])
    found = doubt(scores, [[(0, 1)]] * 8, right)
    assert found is not None
    assert found.auroc == 1.0
    assert [each.value for each in found.quarters] == [1.0, 1.0, 1.0, 0.0]
    assert found.spread == pytest.approx(2 * 3.5 / 8)
    mixed = doubt(list(reversed(scores)), [[(0, 1)]] * 8, torch.arange(8) < 4)
    assert mixed is not None
    assert mixed.auroc == pytest.approx(0.5)
    assert doubt([None], [[(0, 1)]], right[:1]) is None


def test_disagreement_is_the_deviation_of_the_margin_over_all_members(
    tiny_model_dir: Path, export: Path
) -> None:
    single = ModelScorer.load(str(export), layout="text")
    backbone = Backbone.load(
        ModelSpec(name=str(tiny_model_dir), init_seed=3), lm_head=False, trainable=False
    )
    for name in ("member_0", "member_1"):
        backbone.add_head(name)
        torch.nn.init.normal_(backbone.heads[name].weight)
    several = ModelScorer(backbone, "several", "text", heads=("member_0", "member_1"))
    pairs = [("is it 3? ", "yes", "no"), ("4? ", "perhaps", "no"), ("5? ", "no", "yes" * 4000)]
    margins = []
    for model in (single, several):
        for prompt, first, second in pairs[:2]:
            (found,) = model.score([Comparison(prompt, (first, second), (0.0, 0.0))])
            assert isinstance(found, Scored)
            members = found.total[None] if found.members is None else found.members
            margins.append((members[:, 0] - members[:, 1]).tolist())
    by_hand = [statistics.pstdev([*margins[i], *margins[2 + i]]) for i in range(2)]
    found = disagreements([single, several], pairs)
    assert found[:2] == pytest.approx(by_hand, rel=1e-4)
    assert found[2] is None
    assert min(by_hand) > 0.01
    with pytest.raises(ConfigurationError, match=r"nobody to disagree with.*HeadEnsemble"):
        disagreements([single], pairs)
