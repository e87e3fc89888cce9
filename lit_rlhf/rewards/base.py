"""What a reward is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_rlhf.errors import DataError
from lit_rlhf.models import Backbone, RewardSource
from lit_rlhf.types import Completions


class Reward(nn.Module, ABC):
    """Scores completions: one number for each, higher is better.

    A reward is a module so that Lightning moves it to the device and its parts are found; it is never trained.

    Attributes:
        parts: Scores (N,) of the parts of the last call of `score`, by name, for logging; empty where there is but one.
    """

    parts: dict[str, Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.parts = {}

    def attach(self, backbone: Backbone) -> None:
        """Meet the policy's backbone: load what lives on it or must agree with it.

        A policy module calls this while it builds its model. Calling it again does nothing.

        Args:
            backbone: The policy's.
        """
        for reward in self.members():
            reward.attach(backbone)

    def source(self) -> RewardSource | None:
        """Where a trained reward model lives, for a critic to start from; None if there is none."""
        sources = (reward.source() for reward in self.members())
        return next((source for source in sources if source is not None), None)

    @abstractmethod
    def score(self, completions: Completions) -> Tensor:
        """Score completions; records no gradient.

        Returns:
            (N,) float32 on the device of `completions.tokens`, finite.
        """

    def members(self) -> list["Reward"]:
        """The rewards that this one is made of."""
        return [module for module in self.children() if isinstance(module, Reward)]

    def running_state(self) -> dict[str, Any]:
        """What scoring has changed and a checkpoint must hold, as plain numbers, lists and dicts."""
        states = {str(i): reward.running_state() for i, reward in enumerate(self.members())}
        return {name: state for name, state in states.items() if state}

    def load_running_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `running_state` gave."""
        for i, reward in enumerate(self.members()):
            reward.load_running_state(state.get(str(i), {}))


def read_column(completions: Completions, name: str, reader: str) -> list[Any]:
    """A column of the data set, one entry per completion.

    Raises:
        DataError: There is no such column.
    """
    if name not in completions.columns:
        raise DataError(
            f"{reader} reads the column {name!r}, but the prompts came with the columns {sorted(completions.columns)}. "
            "Name another column, or let the data module carry it (format.columns)."
        )
    return completions.columns[name]


def as_scores(values: list[float], completions: Completions) -> Tensor:
    """Python numbers as scores."""
    return completions.tokens.new_tensor(values, dtype=torch.float32)
