"""What a run says when it begins and when it has ended."""

import math
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.callbacks import ExportModel, IterationCheckpoint, MetricsFile, RunSummary
from lit_rlhf.data import PreferenceDataModule, RowsSource
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.models.cards import RECORD
from lit_rlhf.modules import RewardModelModule
from lit_rlhf.testing import tiny_preferences
from tests.unit.callbacks.standins import quiet_trainer


def run(model: Path, directory: Path, *more: Any, **options: Any) -> RunSummary:
    rows = [*tiny_preferences(16), {"prompt": "p", "chosen": "same", "rejected": "same"}]
    data = PreferenceDataModule(
        RowsSource(rows),
        RowsSource(tiny_preferences(4, seed=1)),
        tokenizer=str(model),
        batch_size=4,
    )
    summary = RunSummary()
    callbacks = [MetricsFile(), IterationCheckpoint(), ExportModel(merge=False), summary, *more]
    trainer = quiet_trainer(directory, callbacks, limit_val_batches=1, **options)
    module = RewardModelModule(ModelSpec(name=str(model), lora=LoraSpec(rank=2)))
    trainer.fit(module, data)
    return summary


def test_the_end_of_a_run(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(tiny_model_dir, tmp_path)
    text = capsys.readouterr().out
    assert "RewardModelModule: " in text
    lines = dict(line.split(None, 1) for line in text.splitlines() if line.startswith("  "))
    assert "Done after 8 iterations" in text
    assert {"train/loss", "val/loss", "val/accuracy"} <= lines.keys()
    assert "16 of 17 rows used; 1 left out, identical pair" in text
    assert Path(lines["metrics"].strip()) == tmp_path / "metrics.jsonl"
    assert Path(lines["checkpoint"].strip()).name == "iteration-00000008.ckpt"
    assert Path(lines["export"].strip(), "adapter_config.json").is_file()
    assert f"--reward {tmp_path / 'export'}" in lines["next"]
    assert summary.best["val/loss"].iteration in (4, 8)


def test_an_export_of_another_run_is_not_named(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / RECORD).touch()
    with pytest.warns(UserWarning, match="nothing is exported"):
        run(tiny_model_dir, tmp_path, limit_train_batches=0)
    text = capsys.readouterr().out
    assert "Done after 0 iterations" in text
    assert "export" not in text


def test_the_best_is_of_the_whole_run_and_goes_through_checkpoints() -> None:
    summary = RunSummary()
    assert summary.state_dict() == {"best": {}}
    summary.load_state_dict({"best": {"val/loss": {"value": 0.25, "iteration": 4}}})
    assert summary.state_dict()["best"]["val/loss"] == {"value": 0.25, "iteration": 4}


def test_an_end_before_is_named_as_the_best(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Before(RunSummary):
        state_key = "before"

        def on_train_start(self, *args: Any) -> None:
            super().on_train_start(*args)
            self.load_state_dict({"best": {"val/loss": {"value": 0.0, "iteration": 1}}})

    run(tiny_model_dir, tmp_path, Before())
    assert "at best 0 after iteration 1" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["fails", "dry"])
def test_no_end_without_one(
    how: str, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fails(MetricsFile):
        def on_train_epoch_end(self, *args: Any) -> None:
            raise RuntimeError("no more")

    if how == "fails":
        with pytest.raises(RuntimeError, match="no more"):
            run(tiny_model_dir, tmp_path, Fails(filename="other.jsonl"))
    else:
        run(tiny_model_dir, tmp_path, fast_dev_run=True)
    assert "Done after" not in capsys.readouterr().out


def test_skipped_steps_are_told(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Breaks(MetricsFile):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            if trainer.global_step < 2:
                next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(math.nan)

    run(tiny_model_dir, tmp_path / "well")
    assert "skipped steps" not in capsys.readouterr().out
    run(tiny_model_dir, tmp_path / "broken", Breaks())
    assert "2: their gradients were not finite" in capsys.readouterr().out
