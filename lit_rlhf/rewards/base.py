"""What a reward is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lit_rlhf.errors import ConfigurationError, DataError, ServiceError
from lit_rlhf.models import Backbone, RewardSource
from lit_rlhf.prompt_form import PromptForm
from lit_rlhf.types import Completions, Scores

OnFailure: TypeAlias = Literal["raise", "mean", "skip"]
"""What becomes of completions that can't be scored: the run ends; they get the mean of their prompt's others; or they
are left out of training, counted as `reward/failed`. Where no completion of a batch can be scored, it always ends."""


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
        lists = [each if isinstance(each, nn.ModuleList) else [each] for each in self.children()]
        return [module for listed in lists for module in listed if isinstance(module, Reward)]


def scores_of(reward: Reward, completions: Completions) -> Scores:
    """What a reward, which may be one's own, says of completions: in float32 without gradient, on their device.

    Raises:
        ConfigurationError: It gives no `Scores`, or not one number for each completion.
    """
    name, count = type(reward).__name__, len(completions.responses)
    found: object = reward.score(completions)
    if not isinstance(found, Scores) or not hasattr(found.parts, "items"):
        raise ConfigurationError(
            f"{name}.score returned a {type(found).__name__}: return lit_rlhf.types.Scores(total), with a dictionary "
            "of the parts it is made of where it has any."
        )
    told: dict[str, object] = {f"parts[{part!r}]": value for part, value in found.parts.items()}
    told |= {"total": found.total} | ({} if found.failed is None else {"failed": found.failed})
    for field, value in told.items():
        what = f"of the shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        if not isinstance(value, Tensor) or value.shape != (count,):
            raise ConfigurationError(
                f"{name}.score gave {field} {what[:200]} for {count} completions: it must be a tensor of the shape "
                f"({count},), one number for each completion, in their order."
            )
    device = completions.tokens.device
    numbers = found.total, *found.parts.values()
    total, *parts = (value.detach().to(device, torch.float32) for value in numbers)
    failed = None if found.failed is None else found.failed.to(device).bool()
    return Scores(total, dict(zip(found.parts, parts, strict=True)), failed, found.given)


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


def as_scores(
    values: Sequence[float | None], completions: Completions, *, skip: bool = False
) -> Scores:
    """Python numbers as scores; a completion without one gets the mean of its prompt's others, or else of all.

    Args:
        values: N of them; None where a completion couldn't be scored.
        completions: What was scored.
        skip: Completions without a number are left out of training, and their mean stands in their place alone.

    Raises:
        ServiceError: There is no number at all.
    """
    known = [value for value in values if value is not None]
    if values and not known:
        raise ServiceError(
            f"None of {len(values)} completions could be scored, so there is nothing to learn from."
        )
    samples = len(values) // max(len(completions.prompt_ids), 1) or 1
    filled: list[float] = []
    for start in range(0, len(values), samples):
        group = values[start : start + samples]
        own = [value for value in group if value is not None] or known
        filled += [sum(own) / len(own) if value is None else value for value in group]
    total = completions.tokens.new_tensor(filled, dtype=torch.float32)
    failed = completions.tokens.new_tensor([value is None for value in values], dtype=torch.bool)
    return Scores(total, failed=failed if skip else None)
