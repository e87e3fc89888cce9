"""Preference losses in the tabular world, through `PreferenceModule`'s own batch, forward and reduction."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import PreferenceModule, RLHFModule
from lit_rlhf.objectives import PreferenceLoss
from lit_rlhf.types import BranchedBatch
from lit_rlhf.verify.populations import Population
from lit_rlhf.verify.runner import Case, Training
from lit_rlhf.verify.tabular import TabularWorld

MakeLoss = Callable[[], PreferenceLoss]


@dataclass(frozen=True)
class PreferenceCase(Case):
    """A loss and all the data there could be.

    Attributes:
        make_loss: A fresh loss.
        population: Its data, weighted by probability.
        by_row: Evaluate each row as a batch of its own, for losses that sort the batch.
        make_module: A module without backbone around a loss; default: `PreferenceModule`.
    """

    method: str
    target: str
    world: TabularWorld
    make_loss: MakeLoss
    population: Population
    optimum: Tensor
    training: Training = "minimize"
    rate: float = 0.3
    kink: bool = False
    by_row: bool = False
    make_module: Callable[[PreferenceLoss], PreferenceModule] = lambda loss: PreferenceModule(
        ModelSpec(config={}), loss
    )

    def module(self) -> PreferenceModule:
        """A module around a fresh loss, with the world's reference as policy and reference."""
        return self.world.place(self.make_module(self.make_loss()))

    def expected_loss(self, module: RLHFModule) -> Tensor:
        """The module's own loss of all data in one batch, or the mean of its losses of each datum."""
        module = cast("PreferenceModule", module)
        for buffer in module.objective.buffers():
            buffer.zero_()  # with all data in every batch, what running statistics tend to is the batch's own
        if not self.by_row:
            return _loss(module, self.population)
        total, data = torch.zeros((), dtype=torch.float64), dict(self.population)
        for row, weight in enumerate(data.pop("weight")):
            alone = {name: value[row : row + 1] for name, value in data.items()}
            total = total + weight * _loss(module, alone)
        return total


def rows_on(
    world: TabularWorld, population: Population, **more: Any
) -> Callable[..., PreferenceCase]:
    """Makes the cases of losses on the same data, each of a name, its target, the optimum, the loss and its options."""

    def row(
        name: str,
        target: str,
        best: Tensor,
        loss: type[PreferenceLoss],
        *options: Any,
        **named: Any,
    ) -> PreferenceCase:
        make = partial(loss, *options, **named)
        return PreferenceCase(name, target, world, make, population, best, **more)

    return row


def _loss(module: PreferenceModule, batch: Population) -> Tensor:
    rows = cast("BranchedBatch", batch)
    return module.reduce(module.loss_output(rows).loss, rows)
