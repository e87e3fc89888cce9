import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from torch.utils.data import DataLoader

from lit_rlhf.callbacks import PhaseTimer, timing
from lit_rlhf.callbacks.profile import phase_table
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.estimate import Workload
from lit_rlhf.internals.lightning import current_metrics
from lit_rlhf.models import LoraSpec, ModelSpec, ValueAdapter
from lit_rlhf.models.flops import generation_flops, measure_peak_flops, pass_flops
from lit_rlhf.modules import PPOPolicyModule, SupervisedModule, Updates, phases
from lit_rlhf.modules.minibatches import rollout_batch
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import EvaluatedRollout
from tests.unit.callbacks.standins import Data, Module, quiet_trainer
from tests.unit.modules.policies import CountVowels, prompt_loader

SLEEP = 0.02


class Slow(Module):
    def during_rollout(self) -> None:
        time.sleep(SLEEP)
        self.phases.tokens["rollout"] += 10
        self.phases.tokens["update"] += 40
        self.phases.flops["update"] += torch.tensor(3e4, dtype=torch.float64)
        self.phases.flops["rollout"] += torch.tensor(1e4, dtype=torch.float64)


class Reader(PhaseTimer):
    """Keeps what it logged."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        self.last = current_metrics(trainer)


def test_phases_and_rates_are_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timer = Reader(peak_flops=1e6, summary=True)
    quiet_trainer(tmp_path, [timer], max_epochs=1, enable_checkpointing=False).fit(
        Slow(manual=True), datamodule=Data()
    )
    last = timer.last
    assert last["train/time/rollout"] >= SLEEP
    parts = [last[f"train/time/{name}"] for name in ("rollout", "update", "other")]
    assert sum(parts) == pytest.approx(last["train/time/iteration"])
    assert min(parts) >= 0
    generated = 10 / last["train/time/rollout"]
    assert last["train/throughput/generated_tokens_per_second"] == pytest.approx(generated)
    trained = 40 / last["train/time/update"]
    assert last["train/throughput/trained_tokens_per_second"] == pytest.approx(trained)
    assert last["train/throughput/mfu"] == pytest.approx(3e4 / last["train/time/update"] / 1e6)
    assert last["train/throughput/rollout_mfu"] == pytest.approx(
        1e4 / last["train/time/rollout"] / 1e6
    )
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
    module = SimpleNamespace(
        device=torch.device("cpu"), log_dict=lambda values, batch_size: logged.update(values)
    )
    PhaseTimer.on_train_batch_end(timer, trainer, module, None, batch, 0)
    assert timer.tokens == {"update": 7}
    assert logged["train/throughput/trained_tokens_per_second"] == pytest.approx(
        7 / logged["train/time/update"]
    )


def test_automatic_modules_wait_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step only launches work on a device; it takes as long as that does."""
    launched: list[float] = []

    def wait() -> None:
        while launched:
            time.sleep(launched.pop())

    device = SimpleNamespace(is_available=lambda: True, synchronize=wait)
    monkeypatch.setattr(phases, "torch", SimpleNamespace(cuda=device))

    class Launching(Module):
        def __init__(self) -> None:
            super().__init__(manual=False)
            self.phases = None  # type: ignore[assignment]

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            launched.append(0.1)
            return self.loss(batch)

    timer = Reader()
    trainer = quiet_trainer(tmp_path, [timer], max_epochs=1, enable_checkpointing=False)
    trainer.fit(Launching(), datamodule=Data())
    assert timer.last["train/time/update"] >= 0.1


def test_table_has_shares_of_the_whole() -> None:
    timer = PhaseTimer()
    timer.totals, timer.tokens, timer.flops = (
        {"rollout": 3.0, "update": 1.0},
        {"rollout": 600},
        {"update": 5.0},
    )
    timer._peak = 10.0
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(phase_table(timer.rows()))
    text = console.export_text()
    assert "75%" in text
    assert "200" in text
    assert "50.0%" in text


def test_a_peak_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="peak_flops=-1"):
        PhaseTimer(peak_flops=-1)


class Kept(PPOPolicyModule):
    """Keeps its rollouts."""

    def finish_iteration(self, rollout: EvaluatedRollout) -> None:
        super().finish_iteration(rollout)
        self.kept = [*getattr(self, "kept", []), rollout]


def test_a_profile_of_ppo_counts_every_pass(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Of two iterations the first is in the table, the second gives the operators."""
    spec = ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4))
    options = {"updates": Updates(epochs=2, minibatches=2, microbatch_tokens=64)}
    module = Kept(
        spec, CountVowels(), value=ValueAdapter(), sampling=Sampling(max_new_tokens=6), **options
    )
    timer = PhaseTimer(peak_flops=1e9, profile=True)
    trainer = quiet_trainer(tmp_path, [timer], max_epochs=1, enable_checkpointing=False)
    trainer.fit(module, prompt_loader(tiny_model_dir))
    backbone, rollout = module.backbone, module.kept[0]
    assert len(module.kept) == 2
    batch = rollout_batch(rollout, backbone.pad_token_id)

    def flops(role: str, logprobs: bool, backward: bool = False) -> float:
        return float(pass_flops(backbone, batch, role, logprobs=logprobs, backward=backward))

    sampled = float(
        generation_flops(backbone, "policy", rollout.prompts.mask, rollout.response_mask)
    )
    assert timer.flops == {
        "rollout": pytest.approx(sampled),
        "reference": pytest.approx(
            flops("reference", logprobs=True) + flops("value", logprobs=False)
        ),
        "update": pytest.approx(
            2 * (flops("policy", True, backward=True) + flops("value", False, backward=True))
        ),
    }
    record = json.loads((tmp_path / "profile.json").read_text())
    rows = {row["phase"]: row for row in record["phases"]}
    assert set(rows) == {"rollout", "reward", "reference", "update", "other", "outside iterations"}
    assert rows["update"]["utilisation"] == pytest.approx(
        timer.flops["update"] / rows["update"]["seconds"] / 1e9
    )
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert rows["rollout"]["tokens"] == int(rollout.response_mask.sum())
    text = (tmp_path / "profile.md").read_text()
    assert "| update |" in text
    assert "aten::mm" in text
    assert not any(module._forward_hooks for module in backbone.modules())


@pytest.mark.parametrize(
    ("precision", "dtype", "measured"),
    [
        ("32-true", "float32", torch.float32),
        ("32-true", "bfloat16", torch.bfloat16),
        ("bf16-mixed", "float32", torch.bfloat16),
    ],
)
def test_the_peak_is_measured_in_what_products_are_computed_in(
    precision: Any,
    dtype: Any,
    measured: torch.dtype,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def measure(device: torch.device, dtype: torch.dtype) -> float:
        asked.append(dtype)
        return measure_peak_flops(device, dtype, size=64)

    monkeypatch.setattr(timing, "measure_peak_flops", measure)
    module = SupervisedModule(ModelSpec(name=str(tiny_model_dir), dtype=dtype))
    batch = Workload(2, 6, 4, 1).batch(2)
    trainer = quiet_trainer(
        tmp_path,
        [timer := Reader(peak_flops="measure")],
        max_epochs=1,
        enable_checkpointing=False,
        precision=precision,
    )
    trainer.fit(module, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    assert asked == [measured]
    assert timer.last["train/throughput/mfu"] > 0


def test_peak_memory_is_logged_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, logged, since = torch.device("cuda"), {}, []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", since.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    trainer = SimpleNamespace(is_global_zero=True, world_size=1)
    module: Any = SimpleNamespace(
        device=gpu,
        log_dict=lambda values, **_: logged.update(values),
        phases=phases.Phases(),
        modules=list,
    )
    timer = PhaseTimer()
    timer.on_train_start(trainer, module)  # type: ignore[arg-type]
    timer.on_train_batch_start(trainer, module, {}, 0)  # type: ignore[arg-type]
    timer.on_train_batch_end(trainer, module, None, {}, 0)  # type: ignore[arg-type]
    assert since == [gpu]
    assert logged["train/memory/peak_gib"] == 3.0
    module.phases.peak = 5 * 2**30  # before its count was begun anew within the iteration
    timer.on_train_batch_end(trainer, module, None, {}, 0)  # type: ignore[arg-type]
    assert logged["train/memory/peak_gib"] == 5.0
