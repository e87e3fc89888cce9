"""Group methods that sample on until enough prompts have something to teach."""

from typing import Any

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.advantages import equal_groups
from lit_rlhf.functional.rewards import overlong_penalty
from lit_rlhf.modules.group import GroupPolicyModule
from lit_rlhf.modules.means import Means
from lit_rlhf.modules.rollouts import gather_rollout, join_rollouts, select_prompts
from lit_rlhf.objectives import (
    Advantage,
    ClippedSurrogate,
    FixedKL,
    GroupNormalized,
    KLController,
    KLLoss,
    Surrogate,
    UnbiasedK3,
)
from lit_rlhf.types import PromptBatch, Rollout


class DAPOPolicyModule(GroupPolicyModule):
    r"""DAPO (arXiv:2503.14476): GRPO with clip-higher, a mean over tokens, dynamic sampling and soft overlong punishment.

    **Dynamic sampling.** A prompt whose samples all have the same score has no advantage and teaches nothing. The batch
    of the data module is a pool: an iteration is trained on `batch_size / oversampling` prompts per process, the first
    of the pool whose scores differ. As many as are still lacking are sampled in each round, until there are enough or
    the pool is used up; then prompts with equal scores take the places left, as in GRPO, and an iteration without any
    other takes a step of no gradient but the KL's. What is left of the pool is passed over until the next epoch, which
    has another order. So an iteration stays a function of state, seed and its own batch, resumes exactly, and ends
    after `oversampling` times the prompts at most; the selection is made over the pools of all processes in the order
    in which one process would have them, so it doesn't depend on their number. Scores are compared before penalties, so
    groups of wrong answers of different lengths count as equal, as in the paper. With a KL above 0 its estimate is that
    of the prompts kept.

    **Overlong punishment.** From `overlong_buffer` tokens before the longest completion on, a penalty grows linearly to
    `overlong_penalty` at `sampling.max_new_tokens`; it is subtracted from the score after the comparison.

    Logs `sampling/prompts` and `sampling/resampled_prompts` (of them, those beyond what one round takes),
    `sampling/scores` (mean over all samples; `objective/scores` is of those trained on), `frac_reward_zero_std` (share
    of the prompts sampled whose scores are all equal) and `sampling/unfilled_prompts` (those of them that were trained
    on).

    Args:
        oversampling: Prompts of the pool for each one trained on; 1 or more, and `data.batch_size` is a multiple of it.
            1 trains on every prompt, as GRPO does. Default 3, as in the authors' runs.
        overlong_penalty: Most that a long completion loses, in units of reward, 0 or more; the paper's 1 is meant for
            scores of -1 and 1.
        overlong_buffer: Tokens over which the penalty grows, from 1 to max_new_tokens; None: a fifth of max_new_tokens,
            the paper's share (4,096 of 20,480).
        advantage: Default `GroupNormalized()`.
        surrogate: Default `ClippedSurrogate(low=0.2, high=0.28)`.
        kl: Default `FixedKL(0)`.
        kl_loss: Default `UnbiasedK3()`, which counts once `kl` is above 0.
        num_samples: Default 16, as in the paper.
        **kwargs: As for `GroupPolicyModule`; the reduction is `TokenMean()` by default.

    Raises:
        ConfigurationError: An option is out of range, or the batch is no multiple of `oversampling`.
    """

    def __init__(
        self,
        *args: Any,
        oversampling: int = 3,
        overlong_penalty: float = 1.0,
        overlong_buffer: int | None = None,
        advantage: Advantage | None = None,
        surrogate: Surrogate | None = None,
        kl: KLController | None = None,
        kl_loss: KLLoss | None = None,
        num_samples: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            advantage=advantage or GroupNormalized(),
            surrogate=surrogate or ClippedSurrogate(low=0.2, high=0.28),
            kl=kl or FixedKL(0.0),
            kl_loss=kl_loss or UnbiasedK3(),
            num_samples=num_samples,
            **kwargs,
        )
        self.oversampling = oversampling
        self.overlong_penalty = overlong_penalty
        longest = self.sampling.max_new_tokens
        self.overlong_buffer = max(longest // 5, 1) if overlong_buffer is None else overlong_buffer
        self.check("oversampling", lambda number: number >= 1, "at least 1")
        self.check("overlong_penalty", lambda number: number >= 0, "0 (none) or more")
        self.check(
            "overlong_buffer",
            lambda number: 1 <= number <= longest,
            f"from 1 to max_new_tokens={longest}",
        )
        if overlong_buffer is not None and overlong_penalty == 0:
            raise ConfigurationError(
                f"overlong_buffer={overlong_buffer} is where a penalty of overlong_penalty=0 would "
                "grow. Set a penalty, or "
                "leave the buffer out."
            )

    def penalized_scores(self, rollout: Rollout) -> Tensor:
        """The scores less the penalties of a missing EOS and of length."""
        scores = super().penalized_scores(rollout)
        if self.overlong_penalty == 0:
            return scores
        lengths = rollout.response_mask.sum(-1)
        share = overlong_penalty(lengths, self.sampling.max_new_tokens, self.overlong_buffer)
        return scores + self.overlong_penalty * share

    def draw(self, batch: PromptBatch) -> Rollout:
        """This process's share of the prompts of all pools that have something to teach."""
        pool, ranks = len(batch["index"]), self._world_size
        if pool % self.oversampling:
            raise ConfigurationError(
                f"A batch of {pool} prompts per process can't be divided by oversampling={self.oversampling}: set "
                "data.batch_size to that many times the prompts to train on."
            )
        wanted = lacking = pool // self.oversampling
        rounds: list[Rollout] = []
        samples, parts, done = [], Means(), 0
        while lacking > 0 and done < pool:
            rollout = self.sample(
                select_prompts(batch, slice(done, done + lacking)),
                self.sampling,
                "rollout",
                self.num_samples,
            )
            rounds.append(rollout)
            samples += self.samples
            self.add_reward_parts(parts)
            self.count_generated(rollout.response_mask)
            done = min(done + lacking, pool)
            teach = int(
                self.sum_over_ranks(
                    torch.stack([self._teaches(each).sum() for each in rounds]).sum()
                )
            )
            lacking = -(-(wanted * ranks - teach) // ranks)
        self.samples = samples
        self._count_means(parts)
        return self._share(join_rollouts(rounds), wanted)

    def _share(self, rollout: Rollout, wanted: int) -> Rollout:
        """Select over all ranks, log, and take this rank's part."""
        ranks = self._world_size
        rollout = gather_rollout(rollout, self._gather) if ranks > 1 else rollout
        teaches = self._teaches(rollout)
        chosen = teaches.argsort(descending=True, stable=True)[: wanted * ranks].sort().values
        self.means.add_all(
            {
                "sampling/prompts": torch.tensor(len(teaches)),
                "sampling/resampled_prompts": torch.tensor(len(teaches) - len(chosen)),
                "sampling/unfilled_prompts": (~teaches[chosen]).sum(),
                "sampling/scores": rollout.scores,
                "frac_reward_zero_std": ~teaches,
            }
        )
        return rollout.select(chosen[self.global_rank :: ranks])

    def _teaches(self, rollout: Rollout) -> Tensor:
        """(B,): whether a prompt's scores differ."""
        return ~equal_groups(rollout.scores, rollout.num_samples)
