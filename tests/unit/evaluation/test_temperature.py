"""The temperature of a reward model: fitted on pairs, kept by an export, and never judged in silence on those pairs."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_rlhf.cli import main
from lit_rlhf.data import PreferenceDataModule, RowsSource
from lit_rlhf.errors import DataError
from lit_rlhf.evaluation import (
    ModelScorer,
    RewardEvaluation,
    evaluate_reward,
    fitted_temperature,
    read_comparisons,
)
from lit_rlhf.evaluation.comparisons import share_sketched, sketch_pairs
from lit_rlhf.evaluation.measures import calibrate
from lit_rlhf.metrics import CalibrationError, best_temperature
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import PreferenceModule, RewardModelModule
from lit_rlhf.report.reward_page import report_reward
from lit_rlhf.testing import tiny_preferences, write_jsonl
from tests.tolerances import FP32_MODEL
from tests.unit.modules.policies import make_trainer


def test_the_error_at_the_best_temperature_is_of_pairs_that_it_was_not_fitted_on() -> None:
    margins = torch.tensor([1.0, 3.0, 2.0, -1.0, 4.0, 0.5])
    p_chosen = torch.tensor([0.9, 0.6, 0.7, 0.8, 1.0, 0.6])
    clusters = torch.tensor([7, 7, 9, 9, 12, 12])  # the second of three prompts against the others
    odd = clusters == 9
    expected = CalibrationError()
    for own in (odd, ~odd):
        divided = margins[own] / best_temperature(margins[~own], p_chosen[~own])
        expected.update(divided, torch.zeros_like(divided), p_chosen[own])
    found = calibrate(margins, p_chosen, clusters)
    assert found.error_divided == pytest.approx(float(expected.compute()))
    assert found.temperature == best_temperature(margins, p_chosen)
    assert calibrate(margins, p_chosen, torch.zeros(6)).error_divided != found.error_divided  # nan


def pairs(first: int, last: int) -> list[dict[str, str]]:
    return [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(first, last)]


@pytest.mark.parametrize(("count", "slack"), [(100, 0.0), (2000, 0.12)])
def test_overlap_is_told_by_few_hashes(count: int, slack: float) -> None:
    def items(rows: list[Any]) -> Any:
        return read_comparisons(RowsSource(rows)).items

    sketch = sketch_pairs(items(pairs(0, count)))
    assert len(sketch) <= 256 * 16
    turned = [{**row, "p_chosen": 0.2} for row in pairs(0, count)]
    assert share_sketched(sketch, items(turned)) == 1.0
    assert share_sketched(sketch, items(pairs(count, 2 * count))) == 0.0
    half = items(pairs(count // 2, count // 2 + count))
    assert share_sketched(sketch, half) == pytest.approx(0.5, abs=slack)
    assert share_sketched("", half) == 0.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("rm")
    spec = ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4))
    rows = tiny_preferences(16)
    data = PreferenceDataModule(
        RowsSource(rows),
        val=RowsSource(rows[:4]),
        tokenizer=str(tiny_model_dir),
        cache_dir=str(path / "cache"),
    )
    trainer = make_trainer(max_epochs=20, num_sanity_val_steps=0)
    optimizer = partial(torch.optim.AdamW, lr=3e-3)
    trainer.fit(RewardModelModule(spec, optimizer=optimizer), datamodule=data)
    trainer.save_checkpoint(path / "rm.ckpt")
    return path / "rm.ckpt"


def held_out(seed: int = 1) -> list[dict[str, Any]]:
    """Raters agree with the label in 70 of 100 cases."""
    rows = [dict(row) for row in tiny_preferences(40, seed)]
    return [row | {"prompt": f"{seed} {row['prompt']}", "p_chosen": 0.7} for row in rows]


def evaluated(path: Path, rows: list[dict[str, Any]]) -> RewardEvaluation:
    return evaluate_reward(
        ModelScorer.load(str(path)), read_comparisons(RowsSource(rows)), perturbed=0
    )


@pytest.mark.parametrize("merge", ["true", "false"])
def test_an_export_scores_in_log_odds(
    checkpoint: Path, merge: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "held_out.jsonl", held_out())
    out, plain = tmp_path / "out", tmp_path / "plain"
    words = ["export", f"--ckpt_path={checkpoint}", f"--merge={merge}"]
    main([*words, f"--output={plain}"])
    main([*words, f"--output={out}", f"--calibrate={data}"])
    said = capsys.readouterr().out
    before, after = evaluated(checkpoint, held_out()), evaluated(out, held_out())
    assert before.calibration is not None
    assert after.calibration is not None
    temperature = before.calibration.temperature
    assert abs(temperature - 1) > 0.05
    assert_close(after.pairs.margins, before.pairs.margins / temperature, **FP32_MODEL)
    assert after.calibration.temperature == pytest.approx(1.0, abs=1e-3)
    record, unscaled = (json.loads((each / "lit_rlhf.json").read_text()) for each in (out, plain))
    for name in ("score_mean", "score_std"):  # normalized scores stay what they were
        assert record[name] * temperature == pytest.approx(unscaled[name])
    assert record["temperature"] == pytest.approx(temperature)
    card = (out / "README.md").read_text()
    assert f"divided by {temperature:.4g}" in card
    assert "fitted on 40 pairs of held_out.jsonl" in card
    assert f"divided by {temperature:.4g}, fitted on 40 pairs of held_out.jsonl" in said
    assert "temperature" not in (plain / "README.md").read_text()


def test_others_read_it_so_too(checkpoint: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "held_out.jsonl", held_out())
    for name, more in (("plain", []), ("out", [f"--calibrate={data}"])):
        main(["export", f"--ckpt_path={checkpoint}", f"--output={tmp_path / name}", *more])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer(["how was it? fine", "so it is"], return_tensors="pt", padding=True)
    with torch.no_grad():
        plain, divided = (
            AutoModelForSequenceClassification.from_pretrained(tmp_path / name)(**batch).logits
            for name in ("plain", "out")
        )
    record = json.loads((tmp_path / "out" / "lit_rlhf.json").read_text())
    assert_close(divided * record["temperature"], plain, **FP32_MODEL)


def test_judging_on_the_pairs_of_the_fit_is_said(checkpoint: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "held_out.jsonl", held_out())
    out = tmp_path / "out"
    main(["export", f"--ckpt_path={checkpoint}", f"--output={out}", f"--calibrate={data}"])
    for rows, share in (
        (held_out(), 1.0),
        (held_out(2), 0.0),
        ([*held_out()[:10], *held_out(2)[:30]], 0.25),
    ):
        found = evaluated(out, rows)
        assert found.fitted == pytest.approx(share)
        page = report_reward([found], tmp_path / "page.html")
        told = f"fitted on {100 * share:.1f}\N{NO-BREAK SPACE}% of these pairs"
        assert (told in page.read_text()) == (share > 0)
        numbers = json.loads((tmp_path / "page.json").read_text())
        assert numbers["models"][0]["fitted"] == pytest.approx(share)
    assert evaluated(checkpoint, held_out()).fitted == 0.0


def test_what_fits_no_temperature_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(checkpoint, held_out())
    right = [row for row, margin in zip(held_out(), found.pairs.margins, strict=True) if margin > 0]
    sure = [{**row, "p_chosen": 1.0} for row in right]
    with pytest.raises(DataError, match=r"all of them are in order, as far"):
        fitted_temperature(evaluated(checkpoint, sure))
    with pytest.raises(DataError, match=r"they are of one comparison\. Give more pairs"):
        fitted_temperature(evaluated(checkpoint, held_out()[:1]))
    constant = ModelScorer.load(str(checkpoint))
    constant.backbone.heads["reward"].get_parameter("weight").data.zero_()
    judged = evaluate_reward(constant, read_comparisons(RowsSource(held_out())), perturbed=0)
    with pytest.raises(DataError, match=r"both answers of each have the same score\."):
        fitted_temperature(judged)
    divided = [{**row, "p_chosen": 0.5} for row in right]
    with pytest.raises(
        DataError, match="no larger where raters agree with it than where they don't"
    ):
        fitted_temperature(evaluated(checkpoint, divided))
    wrong = [{**row, "p_chosen": 0.0} for row in right]
    data = write_jsonl(tmp_path / "wrong.jsonl", wrong)
    with pytest.raises(SystemExit):
        main(
            [
                "export",
                f"--ckpt_path={checkpoint}",
                f"--output={tmp_path / 'out'}",
                f"--calibrate={data}",
            ]
        )
    assert "tells no better ones from worse" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_policies_have_none(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", tiny_preferences(4))
    module = PreferenceModule(ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4)))
    rows = PreferenceDataModule(
        RowsSource(tiny_preferences(8)),
        tokenizer=str(tiny_model_dir),
        cache_dir=str(tmp_path / "cache"),
    )
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, datamodule=rows)
    trainer.save_checkpoint(tmp_path / "dpo.ckpt")
    words = [f"--ckpt_path={tmp_path / 'dpo.ckpt'}", f"--output={tmp_path / 'out'}"]
    with pytest.raises(SystemExit):
        main(["export", *words, f"--calibrate={data}"])
    assert "--calibrate is of reward models" in capsys.readouterr().err


def test_a_format_that_must_be_set_is_set_where_there_is_the_option(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [{"question": "q", "good": "a", "bad": "b"}])
    words = [f"--ckpt_path={checkpoint}", f"--output={tmp_path / 'out'}"]
    with pytest.raises(SystemExit):
        main(["export", *words, f"--calibrate={data}"])
    assert "`lit-rlhf data convert` has it" in capsys.readouterr().err
