"""Means of what an iteration logs, reduced over ranks once."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lit_rlhf.distributed import sum_over_ranks
from lit_rlhf.functional.kl import k1
from lit_rlhf.functional.masking import masked_mean, masked_sum
from lit_rlhf.types import EvaluatedRollout, ScoredRollout


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
    mask, counted = rollout.response_mask, _counted(rollout)
    scores, finished = rollout.scores.total[counted], rollout.completions.finished[counted]
    kl = masked_sum(k1(rollout.old_logprobs, rollout.ref_logprobs), mask, dim=-1)[counted]
    lengths = mask.sum(-1)[counted].float()
    metrics = {
        "objective/scores": scores.mean(),
        "objective/kl": kl.mean(),
        "objective/non_score_reward": -kl_coef * kl.mean(),
        "objective/rlhf_reward": scores.mean() - kl_coef * kl.mean(),
        "objective/entropy": -masked_sum(rollout.old_logprobs, mask, dim=-1)[counted].mean(),
        "objective/scores_std": scores.std(unbiased=False),
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
    """Score, KL to the reference and length of held-out samples, and the parts of the reward."""
    mask, scores, counted = rollout.response_mask, rollout.scores, _counted(rollout)
    kl = masked_sum(k1(rollout.old_logprobs, rollout.ref_logprobs), mask, dim=-1)
    metrics = {
        "objective/scores": scores.total[counted].mean(),
        "objective/kl": kl.mean(),
        "completions/mean_length": mask.sum(-1).float().mean(),
        "completions/clipped_ratio": (~rollout.completions.finished).float().mean(),
    }
    parts = scores.parts.items()
    return metrics | {f"rewards/{name}/mean": part[counted].mean() for name, part in parts}


def _counted(rollout: ScoredRollout) -> Tensor:
    """(N,) bool: the samples that were scored; all where none of a batch was, for means must be of something."""
    failed = rollout.scores.left_out
    return ~failed if not bool(failed.all()) else torch.ones_like(failed)
