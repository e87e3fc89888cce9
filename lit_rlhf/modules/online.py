"""Preferences between the policy's own samples, drawn in training: online DPO and SPPO.

Samples of a prompt are taken in pairs, each with its neighbour, and an injected oracle says from their scores which is
preferred. Nothing here compares scores otherwise: a reward matters by the preferences that it implies.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.policy_losses import approx_kl
from lit_rlhf.functional.rewards import place_at_end
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules.policy import PolicyModule
from lit_rlhf.objectives import (
    AOT,
    DPO,
    SPPO,
    BetaDPO,
    FixedKL,
    PairwiseLoss,
    PreferenceOracle,
    SequenceSum,
    SoftLabels,
    UnpairedAOT,
)
from lit_rlhf.rewards import Reward
from lit_rlhf.seeding import sample_seeds, uniforms
from lit_rlhf.types import LossOutput, Rollout, SequenceStats

_OF_A_BATCH = (AOT, UnpairedAOT, BetaDPO)
"""Losses that look at all rows of a batch, of which a microbatch is only a part."""


class ComparingModule(PolicyModule):
    """Base of methods that compare samples in pairs: what the oracle says goes into `rollout.wins`.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        oracle: Says from two scores which is preferred; default `SoftLabels()`.
        **kwargs: As for the next class in line.
    """

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        oracle: PreferenceOracle | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, reward, **kwargs)
        self.oracle = oracle or SoftLabels()

    def compare(self, rollout: Rollout) -> Rollout:
        """Fill in `wins`: how far each sample is preferred to the other one of its pair, (N,) in [0, 1]."""
        scores = self.penalized_scores(rollout).view(-1, 2)
        pairs = torch.arange(len(scores), device=scores.device)
        draws = uniforms(sample_seeds(self.seed, self.iteration, "preference", pairs), 0)
        first = self.oracle(scores[:, 0] - scores[:, 1], draws)
        return replace(rollout, wins=torch.stack([first, 1 - first], dim=-1).flatten())


class OnlineDPOPolicyModule(ComparingModule):
    r"""Online DPO: a loss of preference pairs, on pairs of the policy's own samples (OAIF, arXiv:2402.04792).

    Of samples $y, y' \sim \pi$ the oracle says how far y is preferred, $p \in [0, 1]$; the loss is
    $p\,\ell(y, y') + (1-p)\,\ell(y', y)$ with an injected pairwise loss $\ell$ (chosen, rejected), which for labels of
    0 and 1 is that loss and for soft ones its expectation. No gradient goes through the sampling. With $\ell$ = DPO,
    soft or Bernoulli labels and the initial policy as reference the optimum is $\pi_{ref}e^{r/(T\beta)}/Z$, T the
    oracle's temperature; with `HardLabels`, the default of other libraries, it is all on the best completion.

    Logs the loss's metrics (`rewards/margins`, ...), where the chosen completion is the one with $p \ge 1/2$, and
    `loss/pair_avg`. A completion without any token counts in its pair, which then weighs half.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        loss: $\ell$: any pairwise loss that needs log-probs alone and looks at one pair at a time; default `DPO(0.1)`,
            the beta of the paper and of TRL.
        oracle: Default `SoftLabels()`.
        num_samples: Samples of each prompt, even: the first with the second, the third with the fourth, ...
        **kwargs: As for `PolicyModule`; the strength of the KL penalty is the loss's beta, and its mean over pairs the
            only reduction.

    Raises:
        ConfigurationError: num_samples is odd, or the loss needs more than log-probs of single pairs.
    """

    own_of_pair: ClassVar[int] = 2
    """How many of a pair's two completions are the policy's own samples."""

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        loss: PairwiseLoss | None = None,
        oracle: PreferenceOracle | None = None,
        num_samples: int = 2,
        **kwargs: Any,
    ) -> None:
        loss = loss or DPO(0.1)
        super().__init__(
            backbone,
            reward,
            oracle=oracle,
            num_samples=num_samples,
            kl=FixedKL(loss.beta),  # for the logs: the penalty itself is in the loss
            surrogate=None,
            importance_correction=None,
            reduction=SequenceSum(),
            **kwargs,
        )
        self.pair_loss = loss
        self._refuse_bad_losses()

    def shape_rewards(self, rollout: Rollout) -> Rollout:
        """The oracle's word on each pair."""
        return self.compare(rollout)

    def estimate(self, rollout: Rollout) -> Rollout:
        """Nothing to estimate: the loss is of preferences."""
        return rollout

    def reference_logprobs(self, minibatch: Rollout) -> Tensor:
        """(N, T): what log-ratios are taken to; the initial policy's."""
        assert minibatch.ref_logprobs is not None
        return minibatch.ref_logprobs

    def loss(self, minibatch: Rollout) -> LossOutput:
        """The loss of each pair, at the last token of both of its samples: the mean over samples is that over pairs."""
        out = self.policy_forward(minibatch)
        assert out.logprobs is not None
        output = self.loss_of_pairs(out.logprobs, minibatch)
        own = self.own_tokens(out.mask)
        drift = approx_kl(out.logprobs, minibatch.old_logprobs, out.mask)[own]
        metrics = dict(output.metrics) | {
            "loss/pair_avg": output.loss,
            "policy/approxkl_avg": drift,
        }
        return LossOutput(place_at_end(output.loss.repeat_interleave(2), out.mask), metrics)

    def loss_of_pairs(self, logprobs: Tensor, minibatch: Rollout) -> LossOutput:
        """The loss (P,) of the pairs, each side weighed by how far it is preferred."""
        assert minibatch.wins is not None
        wins, mask = minibatch.wins.view(-1, 2), minibatch.response_mask
        order = wins.argsort(dim=-1, descending=True, stable=True)
        policy = _statistics(logprobs, mask, order)
        reference = _statistics(self.reference_logprobs(minibatch), mask, order)
        p = wins.gather(1, order)[:, 0]
        output = self.pair_loss.of_batch(policy, reference, {"p_chosen": p})
        if bool((p == 1).all()):
            return output
        turned = self.pair_loss.of_batch(_turned(policy), _turned(reference), {"p_chosen": 1 - p})
        return replace(output, loss=p * output.loss + (1 - p) * turned.loss)

    def own_tokens(self, mask: Tensor) -> Tensor:
        """(N, T): the tokens that the policy has sampled itself."""
        return mask

    def _refuse_bad_losses(self) -> None:
        name = type(self.pair_loss).__name__
        beyond = sorted(self.pair_loss.statistics - {"tokens"})
        if beyond:
            raise ConfigurationError(
                f"{type(self).__name__}: {name} needs {beyond} of the policy, and rollouts hold "
                "log-probs alone. Choose "
                "another loss, such as DPO or IPO."
            )
        if isinstance(self.pair_loss, _OF_A_BATCH):
            raise ConfigurationError(
                f"{type(self).__name__}: {name} looks at a whole batch of pairs, and a minibatch is computed in parts "
                "(microbatch_tokens). Choose a loss of single pairs, such as DPO or IPO."
            )
        if self.num_samples % self.own_of_pair:
            raise ConfigurationError(
                f"{type(self).__name__}: num_samples={self.num_samples} samples of a prompt can't "
                "be paired; give an even "
                "number."
            )


class SPPOPolicyModule(OnlineDPOPolicyModule):
    r"""Self-play preference optimization (arXiv:2405.00675), with each rollout an iteration of its own.

    For samples of the rollout's policy $\pi_t$: $\frac12(u - \eta(P - \frac12))^2$ with $u = \log\pi(y)/\pi_t(y)$ and P
    the oracle's preference of y to its neighbour, an unbiased estimate of $P(y \succ \pi_t)$ (the authors' counts each
    sample against itself too). The optimum of a step is about $\pi_t e^{\eta P}/Z$. The initial policy does not enter,
    so nothing
    holds the policy to it: many iterations end in the preference's Nash equilibrium, which for a scalar reward is its
    best completion. Several epochs come nearer to each step's optimum than one.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        loss: Default `SPPO(beta=1e-3)`, $\eta = 1/\beta$ as in the paper.
        **kwargs: As for `OnlineDPOPolicyModule`.
    """

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        loss: PairwiseLoss | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, reward, loss=loss or SPPO(), **kwargs)

    def reference_logprobs(self, minibatch: Rollout) -> Tensor:
        """Those of the policy that sampled."""
        return minibatch.old_logprobs


def _statistics(logprobs: Tensor, mask: Tensor, order: Tensor) -> SequenceStats:
    """Of pairs (P, 2), in an order (P, 2) within each; log-probs are 0 where masked."""
    tokens, kept = (part.view(len(order), 2, -1) for part in (logprobs, mask))
    rows = order[:, :, None].expand_as(tokens)
    tokens, kept = tokens.gather(1, rows), kept.gather(1, rows)
    return SequenceStats(tokens.sum(-1), kept.sum(-1), tokens, kept)


def _turned(stats: SequenceStats) -> SequenceStats:
    """The same pairs, rejected first."""
    assert stats.token_logprobs is not None and stats.token_mask is not None
    return SequenceStats(
        stats.logprobs.flip(1),
        stats.lengths.flip(1),
        stats.token_logprobs.flip(1),
        stats.token_mask.flip(1),
    )
