"""What preference losses are: the interface between a module's statistics of branches and a formula (layer L2)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lit_rlhf.errors import CheckpointError, ConfigurationError, DataError
from lit_rlhf.functional.numerics import per_token
from lit_rlhf.options import check_option
from lit_rlhf.types import LossOutput, SequenceStats

Batch = Mapping[str, Any]
"""One of the batches of `lit_rlhf.types`: to a type checker a TypedDict is no mapping to tensors."""

Statistic = Literal["tokens", "kl", "collision", "value"]
"""What a loss may need beside summed log-probs: log-probs by token (of both models), $KL(\\pi_{ref}\\|\\pi)$ over the
vocabulary summed over tokens, $\\log\\sum_v\\pi(v)^2$ summed over tokens, a learned value of the prompt."""


@dataclass(frozen=True)
class PreferenceStats(SequenceStats):
    """`SequenceStats` and what only some losses ask for, by `PreferenceLoss.statistics`."""

    kl: Tensor | None = (
        None  # (B, K): sum over tokens of KL(reference || policy) over the vocabulary, nats
    )
    collision: Tensor | None = None  # (B, K): sum over tokens of log sum_v pi(v)^2
    value: Tensor | None = None  # (B,): learned value of the prompt


class PreferenceLoss(nn.Module, ABC):
    """An unreduced loss of the branches of a batch; what `PreferenceModule` is injected with.

    A subclass declares what it needs, computes, and keeps what must survive a restart in buffers: `running_state` and
    `load_running_state` hand them to checkpoints. Learned parameters are trained along with the policy.
    """

    needs_reference: bool = True
    """Whether log-probs under the reference are needed, live or precomputed."""
    needs_mismatched: bool = False
    """Whether each row gets a second branch, the completion of the batch's next row (KTO's estimate of the KL)."""
    num_branches: int | None = None
    """The K of the batches it takes (before a mismatched branch is added); None takes any."""
    statistics: frozenset[Statistic] = frozenset()
    """What it needs beside summed log-probs and lengths."""

    @abstractmethod
    def forward(
        self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch
    ) -> LossOutput:
        """The unreduced loss.

        Args:
            policy: Statistics (B, K) of the branches under the policy, with gradient.
            reference: The same under the reference, without; None where `needs_reference` is False.
            batch: The loader's batch, for labels, scores and weights.

        Returns:
            A loss per row, and metrics per row without gradient, keyed by TRL's names; nan where a metric doesn't
            concern a row.
        """

    def __call__(
        self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch
    ) -> LossOutput:
        """`forward`, typed."""
        return cast("LossOutput", super().__call__(policy, reference, batch))

    def check(self, batch: Batch) -> None:
        """Refuse a batch whose columns are missing or out of range; `PreferenceModule` calls it at every step.

        Raises:
            DataError: The message names the column, the values and the way out.
        """

    def running_state(self) -> dict[str, Tensor]:
        """Buffers that a checkpoint must hold, on CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.named_buffers()}

    def load_running_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `running_state` gave.

        Raises:
            CheckpointError: It is the state of another loss.
        """
        buffers = dict(self.named_buffers())
        if set(buffers) != set(state):
            raise CheckpointError(
                f"The checkpoint holds the running statistics {sorted(state)} of its loss, but "
                f"{type(self).__name__} keeps "
                f"{sorted(buffers)}. Set model.init_args.loss to the loss it was written with."
            )
        for name, value in buffers.items():
            value.data = state[name].to(value.device)


class WeightedSum(PreferenceLoss):
    r"""$\sum_i w_i L_i$: a sum of losses is a loss.

    Metrics of one name are those of the first loss that has them; each term is logged as `loss/<class>`.

    Args:
        losses: The terms.
        weights: One number per term; default: 1 each.

    Raises:
        ConfigurationError: There are no losses, another number of weights, or terms that take batches of different K.
    """

    def __init__(self, losses: list[PreferenceLoss], weights: list[float] | None = None) -> None:
        super().__init__()
        self.weights = [1.0] * len(losses) if weights is None else list(weights)
        if not losses or len(self.weights) != len(losses):
            raise ConfigurationError(
                f"WeightedSum has {len(losses)} losses and {len(self.weights)} weights: give a "
                "loss or more, and a weight for each."
            )
        self.losses = nn.ModuleList(losses)
        kinds = {loss.num_branches for loss in losses} - {None}
        if len(kinds) > 1:
            raise ConfigurationError(
                f"WeightedSum: its losses take batches of {sorted(map(str, kinds))} branches; one batch has one K."
            )
        self.num_branches = next(iter(kinds), None)
        self.needs_reference = any(loss.needs_reference for loss in losses)
        self.needs_mismatched = any(loss.needs_mismatched for loss in losses)
        self.statistics = frozenset[Statistic]().union(*(loss.statistics for loss in losses))

    def forward(
        self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch
    ) -> LossOutput:
        """The weighted sum of the terms."""
        outputs = [loss(policy, reference, batch) for loss in self.losses]
        total = torch.stack(
            [weight * out.loss for weight, out in zip(self.weights, outputs, strict=True)]
        ).sum(0)
        metrics: dict[str, Tensor] = {}
        for loss, out in reversed(list(zip(self.losses, outputs, strict=True))):
            metrics |= {f"loss/{type(loss).__name__}": out.loss.detach()} | dict(out.metrics)
        return LossOutput(total, metrics)

    def check(self, batch: Batch) -> None:
        """Each term's own check."""
        for loss in self.losses:
            cast("PreferenceLoss", loss).check(batch)


class NLL(PreferenceLoss):
    r"""$-\log\pi(y_1|x)$, per token by default: the likelihood of the chosen, best or only completion.

    With labels, undesirable completions have loss 0. For sums such as DPO + NLL (RPO, arXiv:2404.19733).

    Args:
        length_normalize: Divide by the number of tokens.
    """

    needs_reference = False

    def __init__(self, length_normalize: bool = True) -> None:
        super().__init__()
        self.length_normalize = length_normalize

    def forward(
        self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch
    ) -> LossOutput:
        """The negative log-likelihood of one branch of each row."""
        best = torch.zeros_like(policy.lengths[:, 0])
        if "score" in batch and batch["score"].dim() == 2:
            missing = ~batch.get("branch_mask", torch.ones_like(batch["score"], dtype=torch.bool))
            best = batch["score"].masked_fill(missing, -torch.inf).argmax(-1)
        logprobs = policy.logprobs.gather(1, best[:, None])[:, 0]
        lengths = policy.lengths.gather(1, best[:, None])[:, 0]
        nll = -(per_token(logprobs, lengths) if self.length_normalize else logprobs)
        if "label" in batch:
            nll = torch.where(batch["label"].bool(), nll, 0.0)
        return LossOutput(nll, {"nll_loss": nll.detach()})


# -- checks of options and batches -------------------------------------------------------------------------------------


def require_positive(owner: object, **options: float) -> None:
    """Refuse options that are not above 0."""
    for name, value in options.items():
        check_option(value > 0, owner, name, value, "above 0")


def require_within(
    owner: object, low: float, high: float, closed: str = "[]", **options: float
) -> None:
    """Refuse options outside an interval; `closed` gives its brackets, such as "[)"."""
    for name, value in options.items():
        above = value >= low if closed[0] == "[" else value > low
        below = value <= high if closed[1] == "]" else value < high
        check_option(
            above and below, owner, name, value, f"in {closed[0]}{low:g}, {high:g}{closed[1]}"
        )


def require_columns(owner: object, batch: Batch, names: Sequence[str]) -> None:
    """Refuse a batch that lacks columns."""
    missing = [name for name in names if name not in batch]
    if missing:
        raise DataError(
            f"{type(owner).__name__} needs {', '.join(missing)} in the batch, which has {', '.join(sorted(batch))}. "
            "Give the data set that column, or choose a loss that doesn't need it."
        )


def require_finite(owner: object, batch: Batch, name: str, mask: Tensor | None = None) -> None:
    """Refuse scores that are nan or infinite where a completion exists."""
    if batch[name].is_meta:
        return
    bad = ~torch.isfinite(batch[name])
    if mask is not None:
        bad &= mask
    if bad.any():
        raise DataError(
            f"{type(owner).__name__}: {name} is not finite in {int(bad.sum())} places of the batch; the first: "
            f"{_first(bad, batch)}. Every completion needs a score; drop or mend those rows."
        )


def require_probabilities(owner: object, batch: Batch, name: str) -> None:
    """Refuse soft labels outside [0, 1] (nan included)."""
    values = batch[name]
    if values.is_meta:
        return
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        raise DataError(
            f"{type(owner).__name__}: {name}={float(values[bad][0])} is no probability ({int(bad.sum())} of "
            f"{len(values)} in the batch; the first: {_first(bad, batch)}). Soft labels must lie in [0, 1]."
        )


def _first(bad: Tensor, batch: Batch) -> str:
    place = bad.nonzero()[0].tolist()
    row = (
        f"row {int(batch['index'][place[0]])} of the data"
        if "index" in batch
        else f"row {place[0]} of the batch"
    )
    return row if len(place) == 1 else f"{row}, completion {place[1]}"
