"""Modules without a Trainer: a loop of plain PyTorch, Lightning's Fabric, and what is asked too early."""

import copy
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor

from lit_rlhf.data import DemonstrationDataModule, PreferenceDataModule, RowsSource
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import PreferenceModule, RewardModelModule, RLHFModule, SupervisedModule
from lit_rlhf.testing import tiny_demonstrations, tiny_preferences
from lit_rlhf.types import BranchOutput
from tests.unit.modules.policies import make_trainer

PAIRS = RowsSource(tiny_preferences(8))
DATA = {
    SupervisedModule: lambda model: DemonstrationDataModule(
        RowsSource(tiny_demonstrations(8)), tokenizer=model, batch_size=4
    ),
    PreferenceModule: lambda model: PreferenceDataModule(PAIRS, tokenizer=model, batch_size=4),
    RewardModelModule: lambda model: PreferenceDataModule(PAIRS, tokenizer=model, batch_size=4),
}


def module_of(kind: type[RLHFModule], model_dir: Path) -> RLHFModule:
    spec = ModelSpec(name=str(model_dir), lora=LoraSpec(rank=4))
    return kind(spec, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))


def trained(module: RLHFModule) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])


def by_trainer(kind: type[RLHFModule], model_dir: Path) -> Tensor:
    module = module_of(kind, model_dir)
    make_trainer().fit(module, DATA[kind](str(model_dir)))
    return trained(module)


def by_hand(kind: type[RLHFModule], model_dir: Path) -> Tensor:
    module, data = module_of(kind, model_dir), DATA[kind](str(model_dir))
    module.configure_model()
    optimizer = module.configure_optimizers()
    data.prepare_data()
    data.setup("fit")
    for i, batch in enumerate(data.train_dataloader()):
        optimizer.zero_grad()
        module.training_step(batch, i).backward()
        optimizer.step()
    return trained(module)


def by_fabric(kind: type[RLHFModule], model_dir: Path) -> Tensor:
    fabric = Fabric(accelerator="cpu", devices=1)
    module, data = module_of(kind, model_dir), DATA[kind](str(model_dir))
    module.configure_model()
    optimizer = module.configure_optimizers()
    data.prepare_data()
    data.setup("fit")
    wrapped, optimizer = fabric.setup(module, optimizer)
    for i, batch in enumerate(fabric.setup_dataloaders(data.train_dataloader())):
        optimizer.zero_grad()
        fabric.backward(wrapped.training_step(batch, i))
        optimizer.step()
    return trained(module)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # there is nothing that logs
@pytest.mark.parametrize("kind", DATA)
def test_loops_of_ones_own_train_as_a_trainer_does(
    kind: type[RLHFModule], tiny_model_dir: Path
) -> None:
    expected = by_trainer(kind, tiny_model_dir)
    for own in (by_hand, by_fabric):
        torch.testing.assert_close(own(kind, tiny_model_dir), expected, rtol=0, atol=0)


def test_what_processes_of_a_notebook_trained_is_in_the_module(tiny_model_dir: Path) -> None:
    kind = RewardModelModule
    module, alone = module_of(kind, tiny_model_dir), module_of(kind, tiny_model_dir)
    data = [
        PreferenceDataModule(PAIRS, val=PAIRS, tokenizer=str(tiny_model_dir), batch_size=4)
        for _ in range(2)
    ]
    make_trainer().fit(alone, data[0])
    make_trainer(strategy="ddp_fork").fit(module, data[1])
    torch.testing.assert_close(trained(module), trained(alone), rtol=0, atol=0)
    assert module.extra_state() == alone.extra_state()
    assert module.extra_state()["score_std"] != 1.0
    assert module.backbone.prompts == alone.backbone.prompts is not None


def test_weights_given_to_a_module_that_is_not_loaded_are_not_passed_over(
    tiny_model_dir: Path,
) -> None:
    module, other = (module_of(SupervisedModule, tiny_model_dir) for _ in range(2))
    module.configure_model()
    weights = {name: value + 1 for name, value in module.state_dict().items()}
    other.load_state_dict(weights)
    torch.testing.assert_close(other.state_dict(), weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    "ask",
    [
        lambda module: module({}),
        lambda module: module.export("never"),
        lambda module: module.configure_optimizers(),
    ],
)
def test_a_model_that_is_not_there_yet_is_said(
    ask: Callable[[RLHFModule], object], tiny_model_dir: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"not loaded yet.*configure_model\(\) first"):
        ask(module_of(SupervisedModule, tiny_model_dir))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", DATA)
def test_fabric_calls_modules_in_any_precision(
    kind: type[RLHFModule], precision: Any, tiny_model_dir: Path
) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    module, data = module_of(kind, tiny_model_dir), DATA[kind](str(tiny_model_dir))
    module.configure_model()
    data.prepare_data()
    data.setup("fit")
    wrapped, _ = fabric.setup(module, module.configure_optimizers())
    batch = next(iter(data.train_dataloader()))
    out, plain = wrapped(batch), module(batch)
    assert type(out) is type(plain)
    for field in fields(out):
        ours, bare = getattr(out, field.name), getattr(plain, field.name)
        assert (ours is None) == (bare is None)
        if ours is not None:
            torch.testing.assert_close(ours, bare, rtol=0.1, atol=0.5, check_dtype=False)
            assert not ours.is_floating_point() or ours.dtype == torch.float32
    with pytest.raises(FrozenInstanceError):
        setattr(out, fields(out)[0].name, None)
    assert type(copy.deepcopy(BranchOutput(torch.ones(1)))) is BranchOutput
