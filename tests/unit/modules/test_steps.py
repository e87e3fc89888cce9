"""What becomes of a gradient: loss scales, skipped steps, decay, how far a policy may drift, schedules."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lit_rlhf.errors import ConfigurationError, TrainingDivergedError
from lit_rlhf.internals.lightning import loss_scaler
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import PPOPolicyModule, Steps, SupervisedModule, Updates, WarmupCosine
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import DemonstrationBatch, EvaluatedRollout, LossOutput
from tests.unit.modules.one_iteration import text_batch
from tests.unit.modules.policies import CountVowels, fit, make_ppo, make_trainer, prompt_loader

ONE_STEP = Updates(epochs=1)


def fp16(scale: float) -> MixedPrecision:
    """Lightning's float16 with a loss scale, on CPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


def movement(model_dir: Path, **options: Any) -> tuple[float, float, Any]:
    """Norm that was logged, how far the weights moved, and the module."""
    module = make_ppo(
        model_dir,
        updates=Updates(epochs=1, max_grad_norm=0.1),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
    )
    module.configure_model()
    before = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
    trainer = fit(module, model_dir, limit_train_batches=1, **options)
    after = dict(module.named_parameters())
    moved = math.sqrt(sum(float((after[n] - p).detach().square().sum()) for n, p in before.items()))
    return float(trainer.callback_metrics["train/grad_norm"]), moved, module


def test_a_loss_scale_changes_neither_norm_nor_step(tiny_model_dir: Path) -> None:
    norm, moved, _ = movement(tiny_model_dir)
    scaled_norm, scaled_moved, _ = movement(tiny_model_dir, plugins=[fp16(1024.0)])
    assert moved == pytest.approx(0.1, rel=0.01)  # clipped
    assert scaled_norm == pytest.approx(norm, rel=0.05)
    assert scaled_moved == pytest.approx(moved, rel=0.05)


def test_a_loss_scale_shrinks_after_an_overflow(tiny_model_dir: Path) -> None:
    plugin = fp16(2.0**40)
    module = make_ppo(tiny_model_dir, updates=Updates(epochs=2, max_skipped=1))
    fit(module, tiny_model_dir, limit_train_batches=1, plugins=[plugin])
    assert module.guard.skipped == 2
    assert float(plugin.scaler.get_scale()) == 2.0**38  # type: ignore[union-attr]


class Poisoned(SupervisedModule):
    """Its loss is not finite from one batch on, up to another."""

    bad = range(1, 2)

    def loss(self, out: Any, batch: DemonstrationBatch) -> LossOutput:
        output = super().loss(out, batch)
        at = self.trainer.fit_loop.total_batch_idx
        return replace(output, loss=output.loss * math.nan) if at in self.bad else output


def supervise(model_dir: Path, bad: range, **options: Any) -> tuple[Poisoned, Any]:
    module = Poisoned(ModelSpec(name=str(model_dir)), **options)
    module.bad = bad
    loader = DataLoader(range(6), collate_fn=lambda _: text_batch(model_dir))  # type: ignore[var-annotated, arg-type]
    trainer = make_trainer()
    trainer.fit(module, loader)
    return module, trainer


def test_a_module_of_automatic_optimization_skips_a_step_too(tiny_model_dir: Path) -> None:
    module, trainer = supervise(tiny_model_dir, range(1, 3))
    assert module.guard.skipped == 2
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())
    assert float(trainer.callback_metrics["train/skipped_steps"]) == 2
    assert float(trainer.callback_metrics["train/grad_norm"]) > 0


def test_a_norm_that_is_not_finite_is_logged_as_it_is(tiny_model_dir: Path) -> None:
    _, trainer = supervise(tiny_model_dir, range(5, 6))
    assert math.isnan(float(trainer.callback_metrics["train/grad_norm"]))


def test_so_many_in_a_row_stop_the_run(tiny_model_dir: Path) -> None:
    with pytest.raises(TrainingDivergedError, match=r"in 3 optimizer steps in a row.*max_skipped"):
        supervise(tiny_model_dir, range(1, 6), steps=Steps(max_skipped=3))
    module, _ = supervise(tiny_model_dir, range(1, 6, 2), steps=Steps(max_skipped=2))
    assert module.guard.skipped == 3  # but none of them in a row


def test_a_policy_that_has_diverged_stops_too(tiny_model_dir: Path) -> None:
    module = make_ppo(
        tiny_model_dir,
        updates=Updates(epochs=4, minibatches=2, max_skipped=2),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1e38),
    )
    with pytest.raises(TrainingDivergedError, match=r"in 2 optimizer steps in a row.*max_skipped"):
        fit(module, tiny_model_dir, limit_train_batches=1)


class Quiet(PPOPolicyModule):
    """Logs nothing of its own, and tells no log-probs."""

    def loss(self, minibatch: EvaluatedRollout) -> LossOutput:
        return LossOutput(super().loss(minibatch).loss)


def test_target_kl_needs_no_metric(tiny_model_dir: Path) -> None:
    def steps(target: float | None) -> int:
        module = Quiet(
            ModelSpec(name=str(tiny_model_dir)),
            CountVowels(),
            sampling=Sampling(max_new_tokens=6),
            updates=Updates(epochs=4, minibatches=2, target_kl=target),
            optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
        )
        return fit(module, tiny_model_dir, limit_train_batches=1).global_step

    assert steps(None) == 8
    assert 1 < steps(1e-7) < 8


@pytest.mark.parametrize("decay_embeddings", [True, False])
def test_norms_and_biases_do_not_decay(tiny_model_dir: Path, decay_embeddings: bool) -> None:
    module = SupervisedModule(
        ModelSpec(name=str(tiny_model_dir)),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1),
        steps=Steps(decay_embeddings=decay_embeddings),
    )
    module.configure_model()
    optimizer = module.configure_optimizers()
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert set(decay.values()) == {0.0, 0.1}
    embeddings = {
        id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    for parameter in (p for p in module.parameters() if p.requires_grad):
        spared = parameter.dim() < 2 or (id(parameter) in embeddings and not decay_embeddings)
        assert decay[id(parameter)] == (0.0 if spared else 0.1)


def test_checkpoints_by_optimizer_steps_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    def run(module: PPOPolicyModule) -> None:
        checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=3)
        make_trainer(callbacks=[checkpoint], enable_checkpointing=True).fit(
            module, prompt_loader(tiny_model_dir)
        )

    with pytest.raises(ConfigurationError, match=r"every_n_train_steps=3.*IterationCheckpoint"):
        run(make_ppo(tiny_model_dir))
    run(make_ppo(tiny_model_dir, updates=ONE_STEP))


@pytest.mark.filterwarnings("ignore:You.re using the WeightAveraging callback")
@pytest.mark.parametrize(
    "callback", [EMAWeightAveraging, partial(StochasticWeightAveraging, swa_lrs=1e-2)]
)
def test_averages_of_the_whole_model_are_refused(
    callback: Callable[[], Callback], tiny_model_dir: Path
) -> None:
    trainer = make_trainer(callbacks=[callback()])
    with pytest.raises(ConfigurationError, match=r"WeightAveraging averages a copy of the whole"):
        trainer.fit(make_ppo(tiny_model_dir), prompt_loader(tiny_model_dir))


def test_a_schedule_that_waits_for_a_metric_is_refused(tiny_model_dir: Path) -> None:
    module = make_ppo(tiny_model_dir, lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(ConfigurationError, match=r"ReduceLROnPlateau waits .* WarmupCosine"):
        fit(module, tiny_model_dir)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "adamw"}, r"optimizer='adamw'\): .* a function of parameter groups"),
        (
            {"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))])},
            r"optimizer must be a function of",
        ),
        ({"lr_scheduler": 0.1}, r"lr_scheduler=0\.1\): .* a function of the optimizer"),
    ],
)
def test_what_makes_no_optimizer_is_refused(
    options: dict[str, Any], said: str, tiny_model_dir: Path
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make_ppo(tiny_model_dir, **options)


@pytest.mark.parametrize("name", ["optimizer", "lr_scheduler"])
def test_an_optimizer_in_other_things_is_refused(name: str, tiny_model_dir: Path) -> None:
    module = make_ppo(tiny_model_dir, **{name: lambda given: {name: given}})
    module.configure_model()
    with pytest.raises(ConfigurationError, match=rf"{name} must be a function of"):
        module.configure_optimizers()


def test_warmup_and_cosine() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupCosine(optimizer, total_steps=10, warmup_steps=4, min_ratio=0.1)
    rates = []
    for _ in range(13):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    for step, rate in enumerate(rates):
        share = (step + 1) / 5 if step < 4 else None
        if share is None:
            done = min((step - 4) / 6, 1.0)
            share = 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
        assert rate == pytest.approx(2.0 * share)
    assert rates[4] == 2.0
    assert rates[-1] == pytest.approx(0.2)
    with pytest.raises(ConfigurationError, match="total_steps=3"):
        WarmupCosine(optimizer, total_steps=3, warmup_steps=4)


@pytest.mark.parametrize(
    ("on_gpu", "scaled", "fused"),
    [(True, False, True), (True, True, None), (False, False, None)],
)
def test_the_default_optimizer_is_fused_on_gpus_but_not_with_a_loss_scale(
    tiny_model_dir: Path,
    on_gpu: bool,
    scaled: bool,
    fused: bool | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = make_ppo(tiny_model_dir, optimizer=None)
    monkeypatch.setattr(torch.optim, "AdamW", lambda _, **options: options["fused"])
    module.trainer = make_trainer(plugins=[fp16(2.0)] if scaled else [])
    assert module._make_optimizer([{"params": [SimpleNamespace(is_cuda=on_gpu)]}]) is fused


def test_without_a_trainer_nothing_is_scaled(tiny_model_dir: Path) -> None:
    assert loss_scaler(make_ppo(tiny_model_dir)) is None
