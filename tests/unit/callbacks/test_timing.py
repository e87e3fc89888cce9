import io
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console

from lit_rlhf.callbacks import PhaseTimer
from lit_rlhf.callbacks.lightning_internals import current_metrics
from lit_rlhf.callbacks.timing import measure_peak_flops, update_flops_per_token
from lit_rlhf.errors import ConfigurationError
from tests.unit.callbacks.standins import Data, Module, quiet_trainer

SLEEP = 0.02


class Slow(Module):
    def during_rollout(self) -> None:
        time.sleep(SLEEP)
        self.phases.count("rollout", 10)
        self.phases.count("update", 40)


class Reader(PhaseTimer):
    """Keeps what it logged."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        self.last = current_metrics(trainer)


def test_phases_and_rates_are_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timer = Reader(peak_flops=1e6, summary=True)
    quiet_trainer(tmp_path, [timer], max_epochs=1, enable_checkpointing=False).fit(Slow(manual=True), datamodule=Data())
    last = timer.last
    assert last["train/time/rollout"] >= SLEEP
    parts = [last[f"train/time/{name}"] for name in ("rollout", "update", "other")]
    assert sum(parts) == pytest.approx(last["train/time/iteration"])
    assert min(parts) >= 0
    generated = 10 / last["train/time/rollout"]
    assert last["train/throughput/generated_tokens_per_second"] == pytest.approx(generated)
    trained = 40 / last["train/time/update"]
    assert last["train/throughput/trained_tokens_per_second"] == pytest.approx(trained)
    weights = 2 * 3 + 3 + 3 + 1
    assert last["train/throughput/mfu"] == pytest.approx(trained * 6 * weights / 1e6)
    printed = capsys.readouterr().out
    assert "Time by phase" in printed
    assert "rollout" in printed


def test_modules_without_phases_are_one_update(tmp_path: Path) -> None:
    class Plain(Module):
        def __init__(self) -> None:
            super().__init__()
            self.phases = None  # type: ignore[assignment]

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return self.loss(batch)

    timer = Reader()
    trainer = quiet_trainer(tmp_path, [timer], max_epochs=1, enable_checkpointing=False)
    trainer.fit(Plain(), datamodule=Data())
    assert set(timer.last) == {"train/time/update", "train/time/iteration"}
    batch = {"branch_ids": torch.tensor([[0, 0, 1, -1], [0, 1, 1, 1]])}
    timer.on_train_batch_start(trainer, trainer.lightning_module, batch, 0)
    timer._ended = time.perf_counter()
    logged: dict[str, float] = {}
    module = SimpleNamespace(log_dict=lambda values, batch_size: logged.update(values))
    PhaseTimer.on_train_batch_end(timer, trainer, module, None, batch, 0)
    assert timer.tokens == {"update": 7}
    assert logged["train/throughput/trained_tokens_per_second"] == pytest.approx(7 / logged["train/time/update"])


def test_table_has_shares_of_the_whole() -> None:
    timer = PhaseTimer()
    timer.totals, timer.tokens = {"rollout": 3.0, "update": 1.0}, {"rollout": 600}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(timer.table())
    text = console.export_text()
    assert "75%" in text
    assert "200" in text


def test_frozen_weights_cost_four_and_trained_ones_six() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 2, bias=False))
    module[0].requires_grad_(False)
    assert update_flops_per_token(module) == 4 * 100 + 6 * 20
    packed = torch.nn.Parameter(torch.zeros(50, 1), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=(10, 10))  # type: ignore[attr-defined]
    module[0].weight = packed
    assert update_flops_per_token(module) == 4 * 100 + 6 * 20


def test_peak_is_measured_or_must_be_positive() -> None:
    assert 1e6 < measure_peak_flops(torch.device("cpu"), size=64) < math.inf
    with pytest.raises(ConfigurationError, match="peak_flops=-1"):
        PhaseTimer(peak_flops=-1)
