"""Reward models by steps, with several heads and of single ratings: from data to training, validation and export."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_rlhf.callbacks import ExportModel
from lit_rlhf.cli import main
from lit_rlhf.data import (
    HelpSteer2Pairs,
    PreferenceDataModule,
    ProcessDataModule,
    RankedDataModule,
    RowsSource,
    Unpaired,
    UnpairedDataModule,
)
from lit_rlhf.data.datamodule import BranchedDataModule
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.evaluation import ModelScorer, evaluate_reward, read_comparisons
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import RewardModelModule
from lit_rlhf.objectives import (
    Attributes,
    GatedAttributes,
    GaussianRegression,
    HeadEnsemble,
    LengthDebiased,
    Outcome,
    PlackettLuce,
    Process,
    Regression,
    RewardLoss,
)
from lit_rlhf.rewards.trained import TrainedReward
from lit_rlhf.testing import tiny_demonstrations, tiny_preferences, tiny_rankings
from tests.tolerances import FP32_MODEL
from tests.unit.modules.policies import make_trainer
from tests.walks import walk

LOSSES: dict[str, RewardLoss] = {
    "process": Process(),
    "gaussian": GaussianRegression(),
    "odin": LengthDebiased(coef=0.1),
    "ensemble": HeadEnsemble(members=3),
    "ratings": HeadEnsemble(Regression(), members=2),
    "outcome": Outcome(),
    "attributes": Attributes([1.0, -0.5]),
    "gated": GatedAttributes(2),
}
STEPS = [
    {
        "prompt": f"add {n}: ",
        "completions": ["one", "two it is", "so it ends"][: n % 3 + 1],
        "labels": [True, n % 2, False][: n % 3 + 1],
    }
    for n in range(9)
]


def rated_rows(count: int) -> list[dict[str, Any]]:
    """Two rows of each prompt, as HelpSteer2 has them."""
    return [
        {"prompt": row["prompt"], "response": row[side], "helpfulness": help_, "verbosity": words}
        for row in tiny_preferences(count)
        for side, help_, words in (("chosen", 4, 1), ("rejected", 1, 2))
    ]


def make_data(kind: str, model: Path, cache: Path) -> BranchedDataModule:
    options: dict[str, Any] = {"tokenizer": str(model), "cache_dir": str(cache), "batch_size": 4}
    if kind == "process":
        return ProcessDataModule(RowsSource(STEPS), val=RowsSource(STEPS[:4]), **options)
    if kind in ("attributes", "gated"):
        both = HelpSteer2Pairs(attributes=("helpfulness", "verbosity"))
        rows = rated_rows(8)
        return PreferenceDataModule(
            RowsSource(rows), val=RowsSource(rows[:8]), format=both, **options
        )
    if kind in ("odin", "ensemble"):
        return PreferenceDataModule(
            RowsSource(tiny_preferences(8)), val=RowsSource(tiny_preferences(4, 1)), **options
        )
    if kind == "ratings":
        return RankedDataModule(
            RowsSource(tiny_rankings(8)), val=RowsSource(tiny_rankings(4, 1)), **options
        )
    rows = [
        {**row, "label": i % 2 == 0, "score": float(i % 3)}
        for i, row in enumerate(tiny_demonstrations(8))
    ]
    rated = Unpaired(score="score") if kind == "gaussian" else Unpaired()
    return UnpairedDataModule(RowsSource(rows), val=RowsSource(rows[:4]), format=rated, **options)


def make_module(loss: RewardLoss, model: Path, **spec: Any) -> RewardModelModule:
    return RewardModelModule(
        ModelSpec(name=str(model), **spec),
        loss,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=3e-3),
    )


def fit(
    kind: str, model: Path, cache: Path, epochs: int = 3, **spec: Any
) -> tuple[RewardModelModule, Trainer, Any]:
    module, data = make_module(LOSSES[kind], model, **spec), make_data(kind, model, cache)
    trainer = make_trainer(max_epochs=epochs, num_sanity_val_steps=0)
    trainer.fit(module, datamodule=data)
    return module, trainer, next(iter(data.train_dataloader()))


@pytest.mark.parametrize("kind", walk(LOSSES, "process", "ensemble", "gated"))
def test_trains_and_validates(kind: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    module, trainer, batch = fit(kind, tiny_model_dir, tmp_path, lora=LoraSpec(rank=4))
    logged = trainer.callback_metrics
    wanted = {"train/loss", "val/loss", "train/min_reward", "train/mean_reward", "train/max_reward"}
    special = {
        "process": {"train/accuracy", "val/accuracy"},
        "gaussian": {"train/std", "val/std", "val/length_correlation"},
        "odin": {"val/accuracy", "val/margin", "val/calibration_error"},
        "ensemble": {"train/members_std", "val/accuracy"},
        "ratings": {"val/members_std"},
        "outcome": {"val/accuracy"},
        "attributes": {"train/accuracy", "val/accuracy", "val/margin"},
        "gated": {"train/gate_entropy", "val/accuracy", "val/calibration_error"},
    }
    assert wanted | special[kind] <= set(logged)
    assert all(value.isfinite() for value in logged.values())
    untrained = make_module(LOSSES[kind], tiny_model_dir, lora=LoraSpec(rank=4))
    untrained.configure_model()
    for head in LOSSES[kind].heads:
        before, after = (
            m.backbone.heads[head].get_parameter("weight") for m in (untrained, module)
        )
        assert (before - after).abs().max() > 1e-3
        assert (before.abs().max() == 0) == (head in LOSSES[kind].zero_heads)
    found = module.predict_step(batch, 0)["scores"]
    assert found.shape[:2] == (
        4,
        {"process": batch.get("step_end", found).shape[1], "ratings": 3}.get(kind, found.shape[1]),
    )


def test_a_step_is_scored_as_the_text_that_ends_there(tiny_model_dir: Path, tmp_path: Path) -> None:
    module = make_module(Process(), tiny_model_dir)
    module.configure_model()
    data = make_data("process", tiny_model_dir, tmp_path)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    scores, _ = module.scores(batch)
    assert batch["step_mask"].sum(-1).unique().numel() > 1
    for row in range(4):
        start = int((batch["branch_ids"][row] == 0).sum())
        for step, end in enumerate(batch["step_end"][row][batch["step_mask"][row]].tolist()):
            ids = batch["input_ids"][row : row + 1, : start + end + 1]
            hidden = module.backbone.decoder(input_ids=ids).last_hidden_state[0, -1]
            assert_close(scores[row, step], module.backbone.heads["reward"](hidden), **FP32_MODEL)


def test_steps_become_one_completion(tiny_model_dir: Path, tmp_path: Path) -> None:
    row = {"prompt": "p: ", "completions": ["ab", "cd", "ef"], "labels": [1, 0.5, 0]}
    options: dict[str, Any] = {
        "tokenizer": str(tiny_model_dir),
        "cache_dir": str(tmp_path),
        "batch_size": 1,
    }
    for limits, steps in (({}, 3), ({"max_completion_length": 7, "too_long": "truncate"}, 2)):
        data = ProcessDataModule(RowsSource([row]), **options, **limits)
        data.prepare_data()
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        written = batch["input_ids"][0][batch["branch_ids"][0] == 1]
        text = data.tokenizer.decode(written)
        assert text.startswith("ab\ncd\nef"[: 8 if steps == 3 else 6])
        assert (written[-1] == data.tokenizer.eos_token_id) == (steps == 3)
        ends = [data.tokenizer.decode(written[: end + 1]) for end in batch["step_end"][0].tolist()]
        assert ends[:2] == ["ab\n", "ab\ncd\n"] and len(ends) == steps
        assert batch["step_label"][0].tolist() == [1.0, 0.5, 0.0][:steps]
        assert batch["step_mask"].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [1, 0]}, "differ in length"),
        ({"labels": [1, 0, 1.5]}, "column 'labels' is out of range"),
        ({"completions": [], "labels": []}, "no list of one or more"),
        ({"completions": ["a", "", "b"]}, "empty completion"),
        ({"completions": [["a"], ["b"], ["c"]]}, "no list of text"),
    ],
)
def test_bad_steps(
    change: dict[str, Any], message: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    row = {"prompt": "p: ", "completions": ["ab", "cd", "ef"], "labels": [1, 0.5, 0]} | change
    data = ProcessDataModule(
        RowsSource([row]), tokenizer=str(tiny_model_dir), cache_dir=str(tmp_path), invalid="error"
    )
    with pytest.raises(DataError, match=message):
        data.prepare_data()


def test_a_gate_is_of_the_prompt_and_scores_by_itself(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, trainer, batch = fit("gated", tiny_model_dir, tmp_path / "cache", lora=LoraSpec(rank=4))
    scores, _ = module.scores(batch)
    gates = scores[..., 2:]
    assert_close(gates[:, 0], gates[:, 1], **FP32_MODEL)  # whatever the answer
    assert gates.std() > 0
    trainer.save_checkpoint(tmp_path / "rm.ckpt")
    words = ["export", "--ckpt_path", str(tmp_path / "rm.ckpt"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(words)
    assert "rm.ckpt is gated by the prompt" in capsys.readouterr().err
    scorer = ModelScorer.load(str(tmp_path / "rm.ckpt"))
    rows = [
        {"prompt": r["prompt"], "chosen": r["response"], "rejected": "no"} for r in rated_rows(4)
    ]
    found = evaluate_reward(scorer, read_comparisons(RowsSource(rows)), perturbed=0)
    data = PreferenceDataModule(RowsSource(rows), tokenizer=str(tiny_model_dir), batch_size=1)
    data.prepare_data()
    data.setup("fit")
    for one in found.scored:
        alone = data.collator()([data.rows["train"][one.comparison.row]])
        assert_close(one.scores, module.predict_step(alone, 0)["scores"][0], **FP32_MODEL)


def test_a_gated_reward_has_no_export_and_says_so_before_training(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    module = make_module(GatedAttributes(2), tiny_model_dir)
    trainer = make_trainer(max_epochs=1, callbacks=[ExportModel(str(tmp_path / "out"))])
    data = make_data("gated", tiny_model_dir, tmp_path)
    with pytest.raises(ConfigurationError, match=r"more than a linear head.*ModelReward"):
        trainer.fit(module, datamodule=data)
    module = make_module(Attributes([1.0, 1.0, 1.0]), tiny_model_dir)
    with pytest.raises(ConfigurationError, match="3 attributes, and the data have 2 ratings"):
        make_trainer(max_epochs=1, num_sanity_val_steps=0).fit(module, datamodule=data)


@pytest.mark.parametrize("kind", ["ensemble", "attributes"])
def test_a_checkpoint_of_several_heads_scores_and_is_exported_as_their_sum(
    kind: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    module, trainer, batch = fit(kind, tiny_model_dir, tmp_path / "cache", lora=LoraSpec(rank=4))
    trainer.save_checkpoint(tmp_path / "rm.ckpt")
    main(["export", "--ckpt_path", str(tmp_path / "rm.ckpt"), "--output", str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text()
    assert module.objective.exported in card
    assert {"ensemble": "of 3 members", "attributes": "with the weights 1, -0.5"}[kind] in card
    expected = module.predict_step(batch, 0)["scores"]
    for path in ("rm.ckpt", "out"):
        loaded = TrainedReward.read(str(tmp_path / path), None).load({})
        with torch.no_grad():
            found = loaded(batch, num_branches=2, role="reward", scores="reward").scores
        assert_close(found.view(4, 2), expected, **FP32_MODEL)


@pytest.mark.parametrize(
    "kind", walk(["odin", "ensemble", "gaussian", "attributes"], "ensemble", "attributes")
)
@pytest.mark.parametrize("merge", [True, False])
def test_exports_hold_what_their_card_says(
    kind: str, merge: bool, tiny_model_dir: Path, tmp_path: Path
) -> None:
    module, _, batch = fit(
        kind, tiny_model_dir, tmp_path / "cache", epochs=1, lora=LoraSpec(rank=4)
    )
    module.export(tmp_path / "export", merge=merge)
    card = (tmp_path / "export" / "README.md").read_text()
    assert module.objective.exported in card
    assert (
        json.loads((tmp_path / "export" / "lit_rlhf.json").read_text())["note"]
        == module.objective.exported
    )
    if not merge:
        from lit_rlhf.models import load_reward_model

        loaded = load_reward_model(tmp_path / "export")
        branches = int(batch["branch_ids"].max())
        scores = loaded(batch, num_branches=branches, role="reward", scores="reward").scores.view(
            4, -1
        )
        assert_close(scores, module.predict_step(batch, 0)["scores"], **FP32_MODEL)
        return
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    ids = batch["input_ids"][:1, batch["branch_ids"][0] <= 1]
    ids = ids[:, batch["branch_ids"][0][batch["branch_ids"][0] <= 1] >= 0]
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert_close(
        model(ids).logits[0, 0],
        module.predict_step(batch, 0)["scores"][0, 0].detach(),
        **FP32_MODEL,
    )


@pytest.mark.parametrize("loss", [Process(), GaussianRegression(), PlackettLuce()])
def test_missing_columns_are_named(loss: RewardLoss, tiny_model_dir: Path, tmp_path: Path) -> None:
    module = make_module(loss, tiny_model_dir)
    module.configure_model()
    data = make_data("outcome", tiny_model_dir, tmp_path)
    data.prepare_data()
    data.setup("fit")
    with pytest.raises(
        DataError, match=rf"{type(loss).__name__} needs the column '(step_end|score)'"
    ):
        module.training_step(next(iter(data.train_dataloader())), 0)
