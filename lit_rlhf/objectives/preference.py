r"""What preference losses are: formulas of completions, which a module calls on batches (layer L2).

A loss is called in two ways. `DPO(beta=0.1)(chosen, rejected)` is the formula: completions and, as keyword-only
arguments, the columns of the data that it reads, to one number for each row. `DPO().of_batch(policy, reference, batch)`
is what modules call: it finds completions and columns in a batch and adds the metrics that are logged.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_rlhf.distributed import gather_rows
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.functional.numerics import per_token
from lit_rlhf.functional.shapes import Rows
from lit_rlhf.objectives.columns import (
    Batch,
    branch_mask,
    column_defaults,
    columns_of,
    refuse_scores,
    require_finite,
)
from lit_rlhf.options import check_option, check_shapes
from lit_rlhf.types import LossOutput, SequenceStats

Statistic = Literal["tokens", "kl", "collision", "value"]
"""What a loss may need beside summed log-probs: log-probs by token (of both models), $KL(\\pi_{ref}\\|\\pi)$ over the
vocabulary summed over tokens, $\\log\\sum_v\\pi(v)^2$ summed over tokens, a learned value of the prompt."""


@dataclass(frozen=True)
class PreferenceStats(SequenceStats):
    """`SequenceStats` and what only some losses ask for, by `PreferenceLoss.statistics`."""

    kl: Tensor | None = None
    """(B, K): sum over tokens of KL(reference || policy) over the vocabulary, nats."""
    collision: Tensor | None = None
    """(B, K): sum over tokens of log sum_v pi(v)^2."""
    value: Tensor | None = None
    """(B,): learned value of the prompt."""


@dataclass(frozen=True)
class Completion:
    """What losses see of completions: one of each row, (B,), or lists of them, (B, K).

    Example:
        >>> chosen = Completion(torch.tensor([-5.0]), torch.tensor([4]), torch.tensor([-6.0]))
        >>> chosen.logratios, chosen.mean_logprobs
        (tensor([1.]), tensor([-1.2500]))
    """

    logprobs: Float[Tensor, "*rows"]
    """Log-probs under the policy, summed over tokens, the end of sequence included."""
    lengths: Int[Tensor, "*rows"]
    """Number of tokens."""
    ref_logprobs: Float[Tensor, "*rows"] | None = None
    """The same sums under the reference, without gradient."""
    kl: Float[Tensor, "*rows"] | None = None
    """Sum over tokens of KL(reference || policy) over the vocabulary."""
    collision: Float[Tensor, "*rows"] | None = None
    """Sum over tokens of log sum_v pi(v)^2."""
    token_logprobs: Float[Tensor, "*rows time"] | None = None
    """Log-prob of each token under the policy."""
    ref_token_logprobs: Float[Tensor, "*rows time"] | None = None
    """The same under the reference, without gradient."""
    token_mask: Bool[Tensor, "*rows time"] | None = None
    """Which of them are tokens; the rest is padding."""
    value: Float[Tensor, " prompts"] | None = None
    """A learned value of the prompt."""

    def __post_init__(self) -> None:
        names = ("logprobs", "lengths", "ref_logprobs", "kl", "collision")
        check_shapes(self, **{name: getattr(self, name) for name in names})

    @property
    def logratios(self) -> Float[Tensor, "*rows"]:
        """U = log pi - log pi_ref of the whole completion."""
        if self.ref_logprobs is None:
            raise ConfigurationError(
                "This loss needs a reference, but none was given: call it with the reference's statistics."
            )
        return self.logprobs - self.ref_logprobs

    @property
    def mean_logprobs(self) -> Float[Tensor, "*rows"]:
        """Log-probs per token, 0 of an empty completion."""
        return per_token(self.logprobs, self.lengths)

    @property
    def mean_logratios(self) -> Float[Tensor, "*rows"]:
        """U per token."""
        return per_token(self.logratios, self.lengths)

    def statistic(self, name: str) -> Tensor:
        """A field that not every completion has.

        Raises:
            ConfigurationError: It was not given.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ConfigurationError(
                f"This loss needs {name!r} of its completions, which PreferenceModule computes for it (a value by its "
                "critic, log-probs by token of a live reference)."
            )
        return value

    def branch(self, index: int) -> "Completion":
        """Of lists (B, K) those at one place, (B,)."""
        lists = {name: column for name, column in vars(self).items() if name != "value"}
        return replace(self, **{n: x[:, index] for n, x in lists.items() if x is not None})


def completions_of(policy: SequenceStats, reference: SequenceStats | None) -> Completion:
    """A module's statistics as lists (B, K)."""
    more: dict[str, Tensor | None] = {}
    if isinstance(policy, PreferenceStats):
        more = {"kl": policy.kl, "collision": policy.collision, "value": policy.value}
    return Completion(
        policy.logprobs,
        policy.lengths,
        None if reference is None else reference.logprobs,
        token_logprobs=policy.token_logprobs,
        ref_token_logprobs=None if reference is None else reference.token_logprobs,
        token_mask=policy.token_mask,
        **more,
    )


class PreferenceLoss(nn.Module, ABC):
    """An unreduced loss of the branches of a batch; what `PreferenceModule` is injected with.

    A subclass declares what it needs, computes, and keeps what must survive a restart in buffers (`state_dict`).
    Learned parameters are trained along with the policy.
    """

    needs_reference: bool = True
    """Whether log-probs under the reference are needed, live or precomputed."""
    needs_mismatched: bool = False
    """Whether each row gets a second branch, the completion of the batch's next row (KTO's estimate of the KL)."""
    num_branches: int | None = None
    """The K of the batches it takes (before a mismatched branch is added); None takes any."""
    statistics: frozenset[Statistic] = frozenset()
    """What it needs beside summed log-probs and lengths."""
    of_all_ranks: bool = False
    """Whether each process has the losses of the rows of all, as where rows are ordered, not of its own rows alone."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a batch that the formula reads: its keyword-only arguments."""
        return tuple(column_defaults(self.forward))

    @abstractmethod
    def forward(self, *completions: Any, **columns: Any) -> Tensor:
        """The formula: completions, and columns as keyword-only arguments, to a loss (B,)."""

    def __call__(self, *completions: Any, **columns: Any) -> Tensor:
        """`forward`, of completions of one shape.

        Raises:
            ConfigurationError: They are bare log-probs, or of several shapes.
        """
        if completions and isinstance(completions[0], Tensor):
            raise ConfigurationError(
                f"{type(self).__name__} was given a Tensor where it takes a Completion(logprobs, lengths, "
                "ref_logprobs) of lit_rlhf.objectives: of each completion the sum of the log-probs of its tokens, "
                "their number, and the sum under the reference, (B,) each."
            )
        given = [each.logprobs for each in completions if isinstance(each, Completion)]
        check_shapes(self, **{f"completion {i + 1}": each for i, each in enumerate(given)})
        return cast("Tensor", super().__call__(*completions, **columns))

    @abstractmethod
    def of_batch(
        self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch
    ) -> LossOutput:
        """The formula on the branches of a batch.

        Args:
            policy: Statistics (B, K) of the branches under the policy, with gradient.
            reference: The same under the reference, without; None where `needs_reference` is False.
            batch: The loader's batch, for labels, scores and weights.

        Returns:
            A loss per row (of all processes' rows, where `of_all_ranks`), and metrics per row without gradient, keyed
            by TRL's names; nan where a metric doesn't concern a row.
        """

    def check(self, batch: Batch) -> None:
        """Refuse a batch whose columns are missing or out of range; `PreferenceModule` calls it at every step.

        Raises:
            DataError: The message names the column, the values and the way out.
        """
        if "score" in columns_of(self, self.forward, batch):
            require_finite(self, batch, "score")


class ImplicitRewardLoss(PreferenceLoss):
    r"""Base of losses with an implicit reward, which is logged: $\beta u$, where a subclass doesn't say otherwise.

    Args:
        beta: Scale of the implicit reward, above 0.

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        check_option(beta > 0, self, "beta", beta, "above 0")
        self.beta = beta

    def reward(self, completion: Completion) -> Tensor:
        r"""The implicit reward that is logged: $\beta u$."""
        return self.beta * completion.logratios


class PairwiseLoss(ImplicitRewardLoss):
    r"""Base of losses of pairs: a subclass writes `forward(chosen, rejected)`, and `reward` where it isn't $\beta u$.

    Logs TRL's `rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins, logps/chosen, logps/rejected`.

    Args:
        beta: Scale of the implicit reward, above 0.

    Raises:
        ConfigurationError: An option is out of range.
    """

    num_branches = 2

    def check(self, batch: Batch) -> None:
        """The first completion is the chosen one."""
        super().check(batch)
        refuse_scores(self, self.forward, batch)

    def of_batch(
        self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch
    ) -> LossOutput:
        """The formula on the first branch (chosen) and the second (rejected), and metrics."""
        if policy.logprobs.shape[-1] != 2:
            raise DataError(
                f"{type(self).__name__} compares two completions of a prompt, but the batch has "
                f"{policy.logprobs.shape[-1]}. Use PreferenceDataModule, or a listwise or pointwise loss."
            )
        completions = completions_of(policy, reference)
        chosen, rejected = completions.branch(0), completions.branch(1)
        loss = self(chosen, rejected, **columns_of(self, self.forward, batch))
        better, worse = self.reward(chosen).detach(), self.reward(rejected).detach()
        metrics = {
            "rewards/chosen": better,
            "rewards/rejected": worse,
            "rewards/accuracies": (better > worse).to(better.dtype) * _apart(chosen, rejected),
            "rewards/margins": better - worse,
            "logps/chosen": chosen.logprobs.detach(),
            "logps/rejected": rejected.logprobs.detach(),
        }
        return LossOutput(loss, metrics)


def _apart(chosen: Completion, rejected: Completion) -> Tensor:
    """Whether log-ratios differ by more than rounding, which alone tells a policy from itself before its first step."""
    if chosen.ref_logprobs is None:
        return torch.ones_like(chosen.logprobs, dtype=torch.bool)
    size = (chosen.logprobs.abs() + rejected.logprobs.abs()).detach()
    gap = (chosen.logratios - rejected.logratios).detach().abs()
    return gap > 4 * torch.finfo(size.dtype).eps * size


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
        self.of_all_ranks = any(loss.of_all_ranks for loss in losses)

    def forward(self, *completions: Completion, **columns: Tensor) -> Tensor:
        """The weighted sum of terms that take the same completions and columns."""
        return self._total([loss(*completions, **columns) for loss in self.losses])

    def of_batch(
        self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch
    ) -> LossOutput:
        """The weighted sum of the terms, each with the completions and columns that it takes."""
        terms = [cast("PreferenceLoss", loss) for loss in self.losses]
        outputs = [loss.of_batch(policy, reference, batch) for loss in terms]
        metrics: dict[str, Tensor] = {}
        for loss, out in reversed(list(zip(terms, outputs, strict=True))):
            metrics |= {f"loss/{type(loss).__name__}": out.loss.detach()} | dict(out.metrics)
        return LossOutput(self._total([out.loss for out in outputs]), metrics)

    def check(self, batch: Batch) -> None:
        """Each term's own check."""
        for loss in self.losses:
            cast("PreferenceLoss", loss).check(batch)

    def _total(self, losses: list[Tensor]) -> Tensor:
        if self.of_all_ranks:  # so all must be
            losses = [
                found if cast("PreferenceLoss", loss).of_all_ranks else gather_rows(found)
                for loss, found in zip(self.losses, losses, strict=True)
            ]
        terms = [weight * loss for weight, loss in zip(self.weights, losses, strict=True)]
        return torch.stack(terms).sum(0)


class NLL(PreferenceLoss):
    r"""$-\frac1n\log\pi(y|x)$ of the chosen, best or only completion, or summed over its tokens.

    Every row weighs the same, however long its completion is: the mean over rows of means over tokens. TRL's term of
    this kind is the mean over all tokens of the batch, in which long completions weigh more. With labels, undesirable
    completions have loss 0. For sums such as DPO + NLL (RPO, arXiv:2404.19733).

    Args:
        length_normalize: Divide by the number of tokens.
    """

    needs_reference = False

    def __init__(self, length_normalize: bool = True) -> None:
        super().__init__()
        self.length_normalize = length_normalize

    def forward(
        self, completion: Completion, *, label: Bool[Tensor, " rows"] | None = None
    ) -> Rows:
        """Of completions (B,); `label` says which are desirable."""
        nll = -(completion.mean_logprobs if self.length_normalize else completion.logprobs)
        return nll if label is None else torch.where(label, nll, 0.0)

    def of_batch(
        self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch
    ) -> LossOutput:
        """Of the first branch, or of the one with the highest score where there are scores (B, K)."""
        best = torch.zeros_like(policy.lengths[:, :1])
        if "score" in batch and batch["score"].dim() == 2:
            missing = ~branch_mask(batch["score"], batch)
            best = batch["score"].masked_fill(missing, -torch.inf).argmax(-1, keepdim=True)
        picked = Completion(*(x.gather(1, best)[:, 0] for x in (policy.logprobs, policy.lengths)))
        columns = columns_of(self, self.forward, batch)
        loss = self(picked, **{name: column.bool() for name, column in columns.items()})
        return LossOutput(loss, {"nll_loss": loss.detach()})
