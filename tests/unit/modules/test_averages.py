"""Batches of unequal size, one after the other, are one big batch; what is overridden is used."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import PreferenceModule, RewardModelModule, RLHFModule, SupervisedModule
from lit_rlhf.types import LossOutput
from tests.reference.branches import row
from tests.tolerances import FP32_MODEL

PAIRS = [
    ([11, 12, 13, 14, 15], [[21, 22, 23, 2], [24, 25, 26, 27, 2]]),
    ([31, 32, 33], [[41, 2], [42, 43, 44, 2]]),
    ([51], [[52, 53, 54, 55, 2], [56, 57, 2]]),
]
KINDS = [SupervisedModule, RewardModelModule, PreferenceModule]


def _batch(rows: list[Any], branches: int) -> Any:
    rows = [(prompt, answers[:branches]) for prompt, answers in rows]
    width = max(len(prompt) + sum(map(len, answers)) for prompt, answers in rows)
    columns = zip(*(row(prompt, answers, width) for prompt, answers in rows), strict=True)
    tensors = [torch.tensor(column) for column in columns]
    names = ("input_ids", "branch_ids", "position_ids")
    return dict(zip(names, tensors, strict=True)) | {"index": torch.arange(len(rows))}


def _divided(kind: type[RLHFModule], sizes: list[int]) -> DataLoader[Any]:
    parts, start = [], 0
    for size in sizes:
        parts.append(_batch(PAIRS[start : start + size], 1 if kind is SupervisedModule else 2))
        start += size
    return DataLoader(parts, batch_size=None)  # type: ignore[arg-type]


def _trainer(**options: Any) -> Trainer:
    quiet = ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar")
    return Trainer(
        accelerator="cpu", devices=1, max_epochs=1, **dict.fromkeys(quiet, False), **options
    )


def _make(kind: type[RLHFModule], model_dir: Path) -> RLHFModule:
    return kind(
        ModelSpec(name=str(model_dir)), optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_accumulating_is_training_on_one_big_batch(
    kind: type[RLHFModule], tiny_model_dir: Path
) -> None:
    found = []
    for sizes, steps in (([3], 1), ([2, 1], 2), ([1, 1, 1], 3), ([2, 1], 5)):
        module = _make(kind, tiny_model_dir)
        _trainer(accumulate_grad_batches=steps).fit(module, _divided(kind, sizes))
        found.append({n: p.detach().clone() for n, p in module.named_parameters()})
    for other in found[1:]:
        for name, expected in found[0].items():
            assert_close(other[name], expected, **FP32_MODEL)


def test_a_microbatch_of_weight_0_takes_no_part(tiny_model_dir: Path) -> None:
    found = []
    for weights in ([[0.0], [1.0, 3.0]], [[0.0, 1.0, 3.0]]):
        module = _make(PreferenceModule, tiny_model_dir)
        loader = _divided(PreferenceModule, [len(each) for each in weights])
        for batch, each in zip(loader.dataset, weights, strict=True):
            batch["weight"] = torch.tensor(each)
        _trainer(accumulate_grad_batches=len(weights)).fit(module, loader)
        assert module.guard.skipped == 0
        found.append({n: p.detach().clone() for n, p in module.named_parameters()})
    for name, expected in found[0].items():
        assert_close(found[1][name], expected, **FP32_MODEL)


@pytest.mark.parametrize("kind", KINDS)
def test_the_validation_loss_is_the_same_at_each_batch_size(
    kind: type[RLHFModule], tiny_model_dir: Path
) -> None:
    module = _make(kind, tiny_model_dir)
    losses = [
        _trainer().validate(module, _divided(kind, sizes), verbose=False)[0]["val/loss"]
        for sizes in ([3], [2, 1], [1, 1, 1])
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_validating_before_fitting_works(kind: type[RLHFModule], tiny_model_dir: Path) -> None:
    module, loader = _make(kind, tiny_model_dir), _divided(kind, [2, 1])
    trainer = _trainer(num_sanity_val_steps=0)
    trainer.validate(module, loader, verbose=False)
    trainer.fit(module, loader, loader)
    assert float(trainer.callback_metrics["val/loss"]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_overridden_loss_is_used(kind: type[RLHFModule], tiny_model_dir: Path) -> None:
    class Mine(kind):  # type: ignore[misc,valid-type]
        def loss(self, *arguments: Any) -> LossOutput:
            output = super().loss(*arguments)
            return LossOutput(0 * output.loss + 7.0, output.metrics)

    module = _make(Mine, tiny_model_dir)
    found = _trainer().validate(module, _divided(kind, [3]), verbose=False)[0]["val/loss"]
    assert found == pytest.approx(7.0)


def test_a_method_and_an_attribute_of_one_name_are_refused() -> None:
    class Hidden(RewardModelModule):
        def objective(self, scores: Tensor) -> Tensor:
            return scores

    with pytest.raises(ConfigurationError, match=r"Hidden has a method objective"):
        Hidden(ModelSpec(config={}))
    module = PreferenceModule(ModelSpec(config={}))
    with pytest.raises(ConfigurationError, match="PreferenceModule has a method loss"):
        module.loss = torch.nn.Identity()  # type: ignore[assignment]
