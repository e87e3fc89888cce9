"""Samples and metrics: what the files hold, also after a kill, and what loggers are given."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lit_rlhf.callbacks import IterationCheckpoint, MetricsFile, SampleTable
from lit_rlhf.callbacks.records import JsonLines
from lit_rlhf.callbacks.tables import log_table
from lit_rlhf.errors import ConfigurationError, FileError
from tests.unit.callbacks.standins import Data, Module, quiet_trainer

ITERATIONS = 12


class KilledError(Exception):
    pass


class Mortal(Module):
    dies_at: int | None = None

    def during_rollout(self) -> None:
        if self.iteration == self.dies_at:
            raise KilledError

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> dict[str, Any]:
        super().validation_step(batch, batch_idx)
        samples = [
            {
                "iteration": self.iteration,
                "prompt": f"v{batch_idx}",
                "response": "é",
                "score": 0.1,
                "finished": False,
            }
        ]
        return {"samples": samples}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(
    tmp: Path,
    dies_at: int | None = None,
    ckpt_path: str | None = None,
    every: int = 3,
    **options: Any,
) -> None:
    module = Mortal(manual=True)
    module.dies_at = dies_at
    callbacks = [
        IterationCheckpoint(str(tmp / "checkpoints"), every_n_iterations=every),
        SampleTable(dirpath=str(tmp / "records")),
        MetricsFile(dirpath=str(tmp / "records")),
    ]
    trainer = quiet_trainer(tmp, callbacks, limit_val_batches=2, **options)
    try:
        trainer.fit(module, datamodule=Data(), ckpt_path=ckpt_path)
    except KilledError:
        assert dies_at is not None


def test_every_iteration_and_validation_is_on_file(tmp_path: Path) -> None:
    run(tmp_path)
    samples, metrics = (
        lines(tmp_path / "records/samples.jsonl"),
        lines(tmp_path / "records/metrics.jsonl"),
    )
    assert [s["iteration"] for s in samples if s["stage"] == "train"] == list(range(ITERATIONS))
    assert [(s["iteration"], s["prompt"]) for s in samples if s["stage"] == "validation"] == [
        (6, "v0"),
        (6, "v1"),
        (12, "v0"),
        (12, "v1"),
    ]
    assert samples[-1]["response"] == "é"
    assert [m["iteration"] for m in metrics if m["stage"] == "train"] == list(
        range(1, ITERATIONS + 1)
    )
    assert [m["iteration"] for m in metrics if m["stage"] == "validation"] == [6, 12]
    epoch = next(m for m in metrics if m["stage"] == "epoch")
    first = [m for m in metrics if m["stage"] == "train"][:6]
    assert epoch["train/most"] == max(m["train/loss_step"] for m in first)
    assert all("val/loss" not in m for m in first)
    assert all(s["score"] == m["train/loss_step"] for s, m in zip(samples[:6], first, strict=True))


def test_a_refused_run_leaves_the_files_of_the_earlier_one(tmp_path: Path) -> None:
    run(tmp_path, dies_at=5)
    before = (tmp_path / "records/samples.jsonl").read_text()
    with pytest.raises(ConfigurationError, match="earlier run"):
        run(tmp_path)
    assert (tmp_path / "records/samples.jsonl").read_text() == before


@pytest.mark.parametrize("dies_at", [1, 4, 6, 7, 11])
def test_files_of_a_killed_run_are_those_of_a_whole_one(tmp_path: Path, dies_at: int) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "killed", dies_at=dies_at)
    if dies_at < 3:
        with pytest.warns(UserWarning, match="starts anew"):
            run(tmp_path / "killed", ckpt_path="last")
    else:
        run(tmp_path / "killed", ckpt_path="last")
    for name in ("samples.jsonl", "metrics.jsonl"):
        whole, killed = (tmp_path / which / "records" / name for which in ("whole", "killed"))
        assert killed.read_bytes() == whole.read_bytes()


def test_a_new_run_sets_the_files_of_another_aside(tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()
    (records / "samples.jsonl").write_text("old\n")
    (records / "samples-1.jsonl").write_text("older\n")
    run(tmp_path)
    assert (records / "samples-2.jsonl").read_text() == "old\n"
    assert len(lines(records / "samples.jsonl")) == ITERATIONS + 4


def test_lost_lines_are_reported(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "x.jsonl")
    file.append([{"a": 1}])
    with pytest.warns(UserWarning, match=r"x\.jsonl has 9 bytes, and had 50 at the checkpoint"):
        file.cut(50)


def test_validating_from_a_checkpoint_cuts_nothing(tmp_path: Path) -> None:
    run(tmp_path, dies_at=5)
    file = tmp_path / "records/samples.jsonl"
    before = file.read_bytes()
    records = [
        SampleTable(dirpath=str(tmp_path / "records")),
        MetricsFile(dirpath=str(tmp_path / "records")),
    ]
    trainer = quiet_trainer(
        tmp_path,
        [IterationCheckpoint(str(tmp_path / "checkpoints")), *records],
        limit_val_batches=1,
    )
    trainer.validate(Mortal(), datamodule=Data(), ckpt_path="last", verbose=False)
    assert file.read_bytes() == before


def test_files_go_to_the_root_directory_by_default(tmp_path: Path) -> None:
    trainer = quiet_trainer(
        tmp_path,
        [SampleTable(every_n_iterations=5)],
        logger=CSVLogger(tmp_path, "logs"),
        max_epochs=1,
        enable_checkpointing=False,
    )
    trainer.fit(Module(manual=True), datamodule=Data())
    assert [s["iteration"] for s in lines(tmp_path / "samples.jsonl")] == [4]


def test_a_module_without_samples_is_refused(tmp_path: Path) -> None:
    class NoSamples(LightningModule):
        pass

    with pytest.raises(ConfigurationError, match=r"NoSamples samples nothing"):
        SampleTable().setup(quiet_trainer(tmp_path, []), NoSamples(), "fit")
    with pytest.raises(ConfigurationError, match="every_n_iterations=0"):
        SampleTable(every_n_iterations=0)


def test_tensorboard_shows_the_first_rows_as_text(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, "tb")
    rows = [["a|b\nc", "r", 0.51234, True]] * 3
    log_table(logger, "train/samples", ("prompt", "response", "score", "finished"), rows, 7)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tb/version_0")).Reload()
    (event,) = events.Tensors("train/samples/text_summary")
    assert event.step == 7
    text = event.tensor_proto.string_val[0].decode()
    assert text.splitlines()[0] == "| prompt | response | score | finished |"
    assert text.splitlines()[2:] == ["| a\\|b<br>c | r | 0.5123 | True |"] * 3


def test_weights_and_biases_and_mlflow_get_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against stand-ins: neither package is needed to use the callback, nor to test it."""
    calls: list[Any] = []
    monkeypatch.setattr(
        WandbLogger, "log_table", lambda self, key, **rest: calls.append((key, rest))
    )
    wandb = WandbLogger.__new__(WandbLogger)
    log_table(wandb, "train/samples", ("a", "b"), [["x", 1.0]], 3)
    assert calls == [("train/samples", {"columns": ["a", "b"], "data": [["x", 1.0]], "step": 3})]

    client = SimpleNamespace(log_table=lambda *args: calls.append(args))
    monkeypatch.setattr(MLFlowLogger, "experiment", client)
    monkeypatch.setattr(MLFlowLogger, "run_id", "run-1")
    mlflow = MLFlowLogger.__new__(MLFlowLogger)
    log_table(mlflow, "train/samples", ("a", "b"), [["x", 1.0], ["y", 2.0]], 3)
    assert calls[-1] == ("run-1", {"a": ["x", "y"], "b": [1.0, 2.0]}, "train/samples/00000003.json")


def test_a_full_disk_is_said_with_the_name_and_lines_are_always_json(tmp_path: Path) -> None:
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    with pytest.raises(FileError, match=r"full\.jsonl can't be written: No space left"):
        JsonLines(tmp_path / "full.jsonl").append([{"a": 1}])
    JsonLines(tmp_path / "a.jsonl").append([{"a": float("nan"), "b": [float("inf"), 1.5]}])
    assert (tmp_path / "a.jsonl").read_text() == '{"a": null, "b": [null, 1.5]}\n'
