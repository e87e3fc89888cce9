"""What a reward is."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from lit_rlhf.errors import DataError
from lit_rlhf.models import Backbone, RewardSource
from lit_rlhf.prompt_form import PromptForm
from lit_rlhf.types import Completions, Scores


class Reward(nn.Module, ABC):
    """Scores completions: one number for each, higher is better.

    A reward is a module so that Lightning moves it to the device and its parts are found; it is never trained. What
    scoring changes and a checkpoint must hold are buffers of the reward itself (`register_buffer`), saved and restored
    with the policy's weights.
    """

    def attach(self, backbone: Backbone) -> None:
        """Meet the policy's backbone: load what lives on it or must agree with it.

        A policy module calls this while it builds its model. Calling it again does nothing.

        Args:
            backbone: The policy's.
        """
        for reward in self.members():
            reward.attach(backbone)

    def check_prompts(self, form: PromptForm) -> None:
        """Warn where a trained reward model has learned of prompts written otherwise than those to come.

        Args:
            form: How those to come are written.
        """
        for reward in self.members():
            reward.check_prompts(form)

    def source(self) -> RewardSource | None:
        """Where a trained reward model lives, for a critic to start from; None if there is none."""
        sources = (reward.source() for reward in self.members())
        return next((source for source in sources if source is not None), None)

    @abstractmethod
    def score(self, completions: Completions) -> Scores:
        """Score completions; records no gradient.

        Returns:
            (N,) float32 on the device of `completions.tokens`, finite, and the parts it is made of, where it has any.
        """

    def members(self) -> list["Reward"]:
        """The rewards that this one is made of."""
        lists = (
            child if isinstance(child, nn.ModuleList) else [child] for child in self.children()
        )
        return [module for listed in lists for module in listed if isinstance(module, Reward)]


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


def as_scores(values: list[float], completions: Completions) -> Scores:
    """Python numbers as scores."""
    return Scores(completions.tokens.new_tensor(values, dtype=torch.float32))
