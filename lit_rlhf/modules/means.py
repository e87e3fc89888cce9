"""Means over batches of unequal size: of what is logged, of gradients, by subset; reduced over processes once."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_rlhf.distributed import gather_objects, num_ranks, sum_over_ranks
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.kl import k1
from lit_rlhf.functional.masking import masked_mean, masked_sum
from lit_rlhf.internals.lightning import has_trainer
from lit_rlhf.types import EvaluatedRollout

TINY = 1e-30
"""Least denominator of a mean, so that one of nothing is 0."""
_MOST = 100


class Means:
    """Sums and counts by name; everything added is reduced over ranks in one collective.

    Example:
        >>> means = Means()
        >>> means.add("x", torch.tensor([1.0, 3.0]))
        >>> means.compute()
        {'x': 2.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor, mask: Tensor | None = None) -> None:
        """Add the entries of a tensor, those alone where `mask` is set if it has the tensor's shape."""
        value = value.detach().double()
        if mask is not None and mask.shape == value.shape:
            total, count = masked_sum(value, mask), mask.sum().double()
        else:
            total, count = (
                value.sum(),
                torch.full((), value.numel(), dtype=torch.float64, device=value.device),
            )
        self._sums[name] = self._sums.get(name, torch.zeros_like(total)) + total
        self._counts[name] = self._counts.get(name, torch.zeros_like(count)) + count

    def add_all(self, metrics: Mapping[str, Tensor], mask: Tensor | None = None) -> None:
        """Add several tensors; `mask` applies to those of its shape."""
        for name, value in metrics.items():
            self.add(name, value, mask)

    def join(self, local: "Means", device: torch.device) -> None:
        """Count the means of this rank's sums, reduced over ranks, as entries of one's own."""
        means = local.compute(sum_over_ranks, device)
        self.add_all({name: torch.tensor(value) for name, value in means.items()})

    def compute(
        self,
        sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | None = None,
    ) -> dict[str, float]:
        """Mean of each name; all ranks must have added the same names.

        Args:
            sum_over_ranks: Sums over processes; None leaves each its own.
            device: Where to sum. What was added may lie on several; default: the CPU.
        """
        names, where = sorted(self._sums), device or torch.device("cpu")
        if not names:
            return {}
        rows = torch.stack(
            [torch.stack([self._sums[n].to(where), self._counts[n].to(where)]) for n in names]
        )
        if sum_over_ranks is not None:
            rows = sum_over_ranks(rows)
        return {
            name: total / max(count, 1.0)
            for name, (total, count) in zip(names, rows.tolist(), strict=True)
        }


SHOWN = {"reward": "objective/scores", "kl": "objective/kl"}
"""What the progress bar shows of them, by the names that it has there."""


def rollout_metrics(
    rollout: EvaluatedRollout,
    kl_coef: float,
    weights: Tensor | None = None,
    iteration: int = 0,
) -> dict[str, float]:
    """What TRL's PPO logs of a rollout, under the same names; per-sequence sums in nats.

    Args:
        rollout: All ranks'.
        kl_coef: The coefficient that was used.
        weights: (N, T) importance weights of its tokens against the engine, where any were used.
        iteration: Of the policy that learns from it.
    """
    mask, failed = rollout.response_mask, rollout.scores.left_out
    counted = ~failed | failed.all()  # all where none was scored, for means must be of something
    scores, finished = rollout.scores.total[counted], rollout.completions.finished[counted]
    kl = masked_sum(k1(rollout.old_logprobs, rollout.ref_logprobs), mask, dim=-1)[counted]
    lengths = mask.sum(-1)[counted].float()
    metrics = {
        **({"objective/scores": scores.mean()} if rollout.scores.given else {}),
        "objective/kl": kl.mean(),
        "objective/non_score_reward": -kl_coef * kl.mean(),
        "objective/rlhf_reward": scores.mean() - kl_coef * kl.mean(),
        "objective/entropy": -masked_sum(rollout.old_logprobs, mask, dim=-1)[counted].mean(),
        **({"objective/scores_std": scores.std(unbiased=False)} if rollout.scores.given else {}),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": (~finished).float().mean(),
        "val/num_eos_tokens": finished.float().sum(),
        "reward/failed": rollout.scores.left_out.float().sum(),
    }
    parts = rollout.scores.parts.items()
    metrics |= {f"rewards/{name}/mean": part[counted].mean() for name, part in parts}
    engine = rollout.completions.logprobs
    if engine is not None:
        gap = torch.where(mask, (engine - rollout.old_logprobs).abs(), 0.0)
        metrics["sampling/sampling_logp_difference/mean"] = masked_mean(gap, mask)
        metrics["sampling/sampling_logp_difference/max"] = gap.max()
    versions = rollout.completions.versions
    if versions is not None:
        metrics["rollout/staleness"] = masked_mean((iteration - versions).float(), mask)
    if weights is not None and bool(mask.any()):
        kept = weights[mask]
        ratio = "sampling/importance_sampling_ratio"
        metrics |= {
            f"{ratio}/min": kept.min(),
            f"{ratio}/mean": kept.mean(),
            f"{ratio}/max": kept.max(),
        }
    values = torch.stack([value.double() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True)) | {"kl_coef": kl_coef, "iteration": iteration}


def evaluation_metrics(rollout: EvaluatedRollout) -> dict[str, Tensor]:
    """Score, KL to the reference and length of held-out samples, and the parts of the reward; for `row_means`."""
    mask, scores = rollout.response_mask, rollout.scores
    counted = ~scores.left_out
    total = torch.where(counted, scores.total, torch.nan)
    metrics = {
        **({"objective/scores": total} if scores.given else {}),
        "objective/kl": masked_sum(k1(rollout.old_logprobs, rollout.ref_logprobs), mask, dim=-1),
        "completions/mean_length": mask.sum(-1).float(),
        "completions/clipped_ratio": (~rollout.completions.finished).float(),
    }
    parts = {f"rewards/{name}/mean": part for name, part in scores.parts.items()}
    return metrics | {n: torch.where(counted, part, torch.nan) for n, part in parts.items()}


class StepMean:
    """The loss of an optimizer step as one quotient, however its microbatches divide the data.

    Lightning divides the loss of each microbatch by `accumulate_grad_batches`, which is right for microbatches of equal
    size alone. Here the loss of a microbatch is its numerator over the denominator of the first one; before the step
    the gradients, which are linear in it, are brought to the denominator of all: training is that of one big batch. A
    step of one microbatch is left alone.
    """

    def __init__(self) -> None:
        self._first = self._total = torch.ones(())
        self._count = 0

    def share(
        self, module: LightningModule, numerator: Tensor, denominator: Tensor, batch_idx: int
    ) -> Tensor:
        """The loss to return from `training_step`.

        Args:
            module: Which trains.
            numerator: Of this process's microbatch, with gradient.
            denominator: Of the microbatches of all processes, above 0, or `TINY` where they hold nothing that counts.
            batch_idx: The microbatch's number in its epoch.
        """
        if not has_trainer(module):  # in a loop of one's own each step has one batch
            return numerator * num_ranks() / denominator
        if self._count == 0 or batch_idx % module.trainer.accumulate_grad_batches == 0:
            # Of nothing it would be TINY, and the numerators that follow would overflow.
            first = torch.where(denominator > TINY, denominator, 1.0)
            self._first, self._total, self._count = first, torch.zeros_like(denominator), 0
        self._total, self._count = self._total + denominator, self._count + 1
        # Strategies average gradients over processes.
        return numerator * module.trainer.world_size / self._first

    @torch.no_grad()
    def finish(self, module: LightningModule) -> None:
        """Bring the gradients to the denominator of the whole step; `OfflineModule` does before each step.

        Raises:
            ConfigurationError: The strategy keeps the gradients to itself.
        """
        count, self._count = self._count, 0
        steps = module.trainer.accumulate_grad_batches
        if steps == 1 or count == 0:
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if not gradients:
            raise ConfigurationError(
                f"trainer.accumulate_grad_batches={steps} averages over all tokens or rows of a step, which takes the "
                f"gradients, and {type(module.trainer.strategy).__name__} keeps those to itself. Set "
                "accumulate_grad_batches: 1, or another strategy."
            )
        for gradient in gradients:
            gradient.mul_((steps * self._first / self._total).to(gradient.dtype))


def row_means(
    metrics: Mapping[str, Tensor], sum_over_ranks: Callable[[Tensor], Tensor]
) -> dict[str, tuple[float, int]]:
    """Mean over the rows of all processes that a metric concerns, and their number; metrics of no row are left out.

    Args:
        metrics: (B,) each, nan in rows that it doesn't concern.
        sum_over_ranks: Adds up a tensor over processes.
    """
    if not metrics:
        return {}
    sums = [
        torch.stack([value.double().nansum(), (~value.isnan()).sum()]) for value in metrics.values()
    ]
    totals = sum_over_ranks(torch.stack(sums)).tolist()
    return {
        name: (total / n, int(n)) for name, (total, n) in zip(metrics, totals, strict=True) if n > 0
    }


class SubsetMeans:
    """Sums and counts of a number by the subset that its row names; processes may see different subsets."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}

    def update(self, names: Sequence[str], values: Tensor) -> None:
        """Take in rows.

        Args:
            names: B subsets, "" for none.
            values: (B,), nan in rows that it doesn't concern.
        """
        for name, value in zip(names, values.tolist(), strict=True):
            if name and not math.isnan(value):
                total, count = self._seen.get(name, (0.0, 0))
                self._seen[name] = total + value, count + 1

    def compute(self) -> dict[str, tuple[float, int]]:
        """Mean and number of rows by subset, the same on each process; forgets what was seen."""
        joined: dict[str, tuple[float, int]] = {}
        for seen in gather_objects(self._seen):
            for name, (total, count) in seen.items():
                before = joined.get(name, (0.0, 0))
                joined[name] = before[0] + total, before[1] + count
        self._seen = {}
        if len(joined) > _MOST:
            rank_zero_warn(
                f"The column `subset` of the data has {len(joined)} values, so it names no parts: accuracy is not "
                f"told by subset. Name the column otherwise, or give it {_MOST} values at most."
            )
            return {}
        return {name: (total / count, count) for name, (total, count) in sorted(joined.items())}
