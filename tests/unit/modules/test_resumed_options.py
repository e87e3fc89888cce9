"""A run that goes on with other options of the optimizer or the schedule: what is written holds, and both are named."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lit_rlhf.errors import CheckpointError
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import Steps, SupervisedModule, WarmupCosine
from tests.unit.modules.one_iteration import text_batch
from tests.unit.modules.policies import make_trainer

Options = dict[str, Any]


def adam(**changed: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda groups: torch.optim.AdamW(groups, **({"lr": 1e-3, "weight_decay": 0.1} | changed))


def cosine(total: int) -> Callable[[Any], WarmupCosine]:
    return lambda optimizer: WarmupCosine(optimizer, total_steps=total, warmup_steps=1)


def run(
    model_dir: Path, steps: int, ckpt: Path | None, options: Options, **trainer_options: Any
) -> Trainer:
    module = SupervisedModule(ModelSpec(name=str(model_dir)), **options)
    loader = DataLoader(range(6), collate_fn=lambda _: text_batch(model_dir))  # type: ignore[var-annotated, arg-type]
    trainer = make_trainer(max_steps=steps, max_epochs=9, **trainer_options)
    trainer.fit(module, loader, ckpt_path=ckpt)
    return trainer


def go_on(model_dir: Path, tmp: Path, before: Options, now: Options) -> tuple[Trainer, str]:
    run(model_dir, 2, None, before).save_checkpoint(tmp / "a.ckpt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = run(model_dir, 3, tmp / "a.ckpt", now)
    return trainer, " ".join(str(w.message) for w in caught if "Options changed" in str(w.message))


@pytest.mark.parametrize(
    ("changed", "key", "said"),
    [
        ({"lr": 1e-2}, "lr", "model.lr was 0.001, is 0.01"),
        ({"weight_decay": 0.5}, "weight_decay", "model.weight_decay was 0.1, is 0.5"),
        ({"betas": (0.8, 0.99)}, "betas", "model.betas[0] was 0.9, is 0.8"),
        ({"eps": 1e-6}, "eps", "model.eps was 1e-08, is 1e-06"),
    ],
)
def test_an_option_of_the_optimizer(
    tiny_model_dir: Path, tmp_path: Path, changed: Options, key: str, said: str
) -> None:
    now = {"optimizer": adam(**changed)}
    trainer, warning = go_on(tiny_model_dir, tmp_path, {"optimizer": adam()}, now)
    assert said in warning
    decayed, others = trainer.optimizers[0].param_groups
    assert decayed[key] == changed[key]
    assert others["weight_decay"] == 0.0
    state = next(iter(trainer.optimizers[0].state.values()))
    assert float(state["step"]) == 3  # the moments go on


@pytest.mark.parametrize("before", [None, 10])
@pytest.mark.parametrize("now", [None, 10, 40])
def test_the_schedule(
    tiny_model_dir: Path, tmp_path: Path, before: int | None, now: int | None
) -> None:
    def options(total: int | None) -> Options:
        return {"optimizer": adam()} | ({"lr_scheduler": cosine(total)} if total else {})

    trainer, warning = go_on(tiny_model_dir, tmp_path, options(before), options(now))
    assert bool(warning) == (before != now)
    if before and now and before != now:
        assert "lr_scheduler.total_steps was 10, is 40" in warning
    whole = run(tiny_model_dir, 3, None, options(now))
    for mine, theirs in zip(
        trainer.optimizers[0].param_groups, whole.optimizers[0].param_groups, strict=True
    ):
        assert mine["lr"] == theirs["lr"]
    for found, wanted in zip(trainer.lr_scheduler_configs, whole.lr_scheduler_configs, strict=True):
        assert found.scheduler.state_dict() == wanted.scheduler.state_dict()


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"optimizer": lambda groups: torch.optim.SGD(groups, lr=1e-3)}, "was AdamW, is SGD"),
        ({"optimizer": adam(), "steps": Steps(decay_embeddings=False)}, "parameters was"),
    ],
)
def test_what_the_state_hangs_on_is_refused(
    tiny_model_dir: Path, tmp_path: Path, now: Options, said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        go_on(tiny_model_dir, tmp_path, {"optimizer": adam()}, now)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one, as divided parameters need."""
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # as `silence_noise` does
def test_also_where_the_strategy_loads_before_the_module_is_asked(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """FSDP2 restores the optimizer itself, and ends in an assertion of torch's where it doesn't fit."""
    before: Options = {"optimizer": adam()}
    divided = {"strategy": "fsdp2", "devices": 1}
    run(tiny_model_dir, 2, None, before, **divided).save_checkpoint(tmp_path / "a.ckpt")
    now: Options = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=1e-3)}
    with pytest.raises(CheckpointError, match="was AdamW, is SGD"):
        run(tiny_model_dir, 3, tmp_path / "a.ckpt", now, **divided)
    run(tiny_model_dir, 3, tmp_path / "a.ckpt", before, **divided)
