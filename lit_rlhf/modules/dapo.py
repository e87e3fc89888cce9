"""Group methods that sample on until enough prompts have something to teach."""

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_rlhf.distributed import num_ranks, rank, sum_over_ranks
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.advantages import equal_groups
from lit_rlhf.functional.rewards import overlong_penalty
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules.group import GroupPolicyModule, Parts
from lit_rlhf.modules.minibatches import gather_rollout, join_rollouts, select_prompts
from lit_rlhf.objectives import ClippedSurrogate, FixedKL, GroupNormalized, UnbiasedK3
from lit_rlhf.options import check_option
from lit_rlhf.rewards import Reward
from lit_rlhf.types import PromptBatch, Sample, ScoredRollout


class DAPOPolicyModule(GroupPolicyModule):
    r"""DAPO (arXiv:2503.14476): GRPO with clip-higher, token mean, dynamic sampling, overlong punishment.

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
        **kwargs: As for `GroupPolicyModule`. The advantage is `GroupNormalized()` by default, the surrogate
            `ClippedSurrogate(low=0.2, high=0.28)`, the reduction `TokenMean()`, kl `FixedKL(0)` (`UnbiasedK3()` counts
            once it is above 0), and `num_samples` 16, as in the paper.

    Raises:
        ConfigurationError: An option is out of range, or the batch is no multiple of `oversampling`.
    """

    default_parts: ClassVar[Parts] = {
        **GroupPolicyModule.default_parts,
        "advantage": GroupNormalized,
        "surrogate": partial(ClippedSurrogate, low=0.2, high=0.28),
        "kl": partial(FixedKL, 0.0),
        "kl_loss": UnbiasedK3,
    }
    default_samples: ClassVar[int] = 16

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        oversampling: int = 3,
        overlong_penalty: float = 1.0,
        overlong_buffer: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, reward, **kwargs)
        self.oversampling = oversampling
        self.overlong_penalty = overlong_penalty
        longest = self.sampling.max_new_tokens
        self.overlong_buffer = max(longest // 5, 1) if overlong_buffer is None else overlong_buffer
        buffer = self.overlong_buffer
        check_option(oversampling >= 1, self, "oversampling", oversampling, "at least 1")
        check_option(
            overlong_penalty >= 0, self, "overlong_penalty", overlong_penalty, "0 (none) or more"
        )
        what = f"from 1 to max_new_tokens={longest}"
        check_option(1 <= buffer <= longest, self, "overlong_buffer", buffer, what)
        if overlong_buffer is not None and overlong_penalty == 0:
            raise ConfigurationError(
                f"overlong_buffer={overlong_buffer} is where a penalty of overlong_penalty=0 would grow. Set a "
                "penalty, or leave the buffer out."
            )

    def penalized_scores(self, rollout: ScoredRollout) -> Tensor:
        """The scores less the penalties of a missing EOS and of length."""
        scores = super().penalized_scores(rollout)
        if self.overlong_penalty == 0:
            return scores
        lengths = rollout.response_mask.sum(-1)
        share = overlong_penalty(lengths, self.sampling.max_new_tokens, self.overlong_buffer)
        return scores + self.overlong_penalty * share

    def next_prompts(self) -> PromptBatch | None:
        """The first pool."""
        batch = super().next_prompts()
        if batch is None:
            return None
        return select_prompts(batch, slice(0, len(batch["index"]) // self.oversampling))

    def draw(self, batch: PromptBatch) -> tuple[ScoredRollout, list[Sample]]:
        """This process's share of the prompts of all pools that have something to teach; samples of all drawn."""
        pool, ranks = len(batch["index"]), num_ranks()
        if pool % self.oversampling:
            raise ConfigurationError(
                f"A batch of {pool} prompts per process can't be divided by oversampling={self.oversampling}: set "
                "data.batch_size to that many times the prompts to train on."
            )
        wanted = lacking = pool // self.oversampling
        rounds: list[ScoredRollout] = []
        samples: list[Sample] = []
        done = 0
        while lacking > 0 and done < pool:
            rollout, drawn = super().draw(select_prompts(batch, slice(done, done + lacking)))
            rounds.append(rollout)
            samples += drawn
            done = min(done + lacking, pool)
            found = torch.stack([_teaches(each).sum() for each in rounds]).sum()
            lacking = -(-(wanted * ranks - int(sum_over_ranks(found))) // ranks)
        return self._share(join_rollouts(rounds), wanted), samples

    def _share(self, rollout: ScoredRollout, wanted: int) -> ScoredRollout:
        """Select over all processes, log, and take this one's part."""
        rollout = gather_rollout(rollout)
        teaches = _teaches(rollout)
        chosen = teaches.argsort(descending=True, stable=True)[: wanted * num_ranks()].sort().values
        self.means.add_all(
            {
                "sampling/prompts": torch.tensor(len(teaches)),
                "sampling/resampled_prompts": torch.tensor(len(teaches) - len(chosen)),
                "sampling/unfilled_prompts": (~teaches[chosen]).sum(),
                "sampling/scores": rollout.scores.total[~rollout.scores.left_out],
                "frac_reward_zero_std": ~teaches,
            }
        )
        return rollout.select(chosen[rank() :: num_ranks()])


def _teaches(rollout: ScoredRollout) -> Tensor:
    """(B,): whether a prompt's scores differ."""
    scores = rollout.scores
    return ~equal_groups(scores.total, rollout.num_samples, ~scores.left_out)
