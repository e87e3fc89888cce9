"""Bringing rewards to a scale."""

import torch
from torch import Tensor

from lit_rlhf.distributed import sum_over_ranks
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.masking import Moments, merge_moments
from lit_rlhf.functional.rewards import no_moments
from lit_rlhf.options import check_option
from lit_rlhf.rewards.base import Reward, scores_of
from lit_rlhf.types import Completions, Scores

_LEAST_STD = 1e-8


class NormalizedReward(Reward):
    r"""$\mathrm{clip}((r - \mu) / \sigma, -c, c)$ of another reward.

    It stands before the KL penalty: the policy module subtracts $\beta\,KL$ from what is returned here, so this
    rescales the reward alone, and $\beta$ is in units of the normalised reward. To divide by $\sigma$ is therefore the
    same as to multiply $\beta$ by it; a running $\sigma$ moves that trade-off during training, a fixed one doesn't. The
    penalty for a missing EOS comes after it too.

    Mean and deviation are fixed where they are given. Otherwise they are those of all scores seen so far, of all
    processes (Welford's sums in float64): a batch is counted first and then normalised. Scores seen in eval mode, as in
    validation, are normalised but not counted. They are a buffer, which checkpoints hold.

    Args:
        reward: The reward to normalise.
        mean: $\mu$, fixed; give it together with `std`.
        std: $\sigma > 0$, fixed.
        center: Subtract $\mu$. Off, only the scale changes, and a reward keeps its sign.
        clip: $c > 0$, in standard deviations; None clips nothing.

    Raises:
        ConfigurationError: Only one of mean and std, or a value out of its range.
    """

    def __init__(
        self,
        reward: Reward,
        mean: float | None = None,
        std: float | None = None,
        center: bool = True,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ConfigurationError(
                f"NormalizedReward has mean={mean} and std={std}: give both (fixed) or neither (running statistics)."
            )
        check_option(std is None or std > 0, self, "std", std, "above 0")
        allowed = "above 0, or null for no clipping"
        check_option(clip is None or clip > 0, self, "clip", clip, allowed)
        self.reward = reward
        self.fixed = (mean, std) if mean is not None and std is not None else None
        self.center = center
        self.clip = clip
        if self.fixed is None:
            self.counted: Tensor  # number, mean and sum of squared deviations of the scores seen
            moments = torch.stack(no_moments(torch.zeros((), dtype=torch.float64)))
            self.register_buffer("counted", moments)

    def score(self, completions: Completions) -> Scores:
        """(N,) float32; the parts hold the score before normalisation as "raw"."""
        found = scores_of(self.reward, completions)
        raw = found.total
        if self.fixed is None and self.training:
            self._count(raw[~found.left_out])
        mean, std = self.moments()
        scores = (raw - mean) / std if self.center else raw / std
        if self.clip is not None:
            scores = scores.clamp(-self.clip, self.clip)
        return Scores(scores, {"raw": raw, **found.parts}, found.failed)

    @property
    def seen(self) -> Moments:
        """Of the scores counted so far."""
        return Moments(*self.counted)

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation in use; 0 and 1 before anything was counted, and 1 while all are alike."""
        if self.fixed is not None:
            return self.fixed
        std = float((self.seen.m2 / self.seen.n.clamp_min(1)).sqrt())
        return float(self.seen.mean), std if std > _LEAST_STD else 1.0

    def _count(self, scores: Tensor) -> None:
        scores = scores.detach().double()
        count, total = sum_over_ranks(
            torch.stack([scores.new_tensor(float(len(scores))), scores.sum()])
        ).tolist()
        if count == 0:
            return
        mean = total / count
        squares = float(sum_over_ranks((scores - mean).square().sum()))
        new = self.counted.new_tensor([count, mean, squares])
        merged = merge_moments(Moments(*torch.stack([self.counted, new], -1)))
        self.counted.copy_(torch.stack(merged))
