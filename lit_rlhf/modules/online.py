"""Preferences between samples drawn in training: online DPO, SPPO, XPO.

Samples of a prompt are taken in pairs, each with its neighbour or with an opponent's, and an injected oracle says from
their scores which is preferred. Nothing here compares scores otherwise: a reward matters by the preferences that it
implies.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.masking import masked_sum
from lit_rlhf.functional.policy_losses import approx_kl
from lit_rlhf.functional.rewards import place_at_end
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules.opponents import (
    Opponent,
    ReferenceOpponent,
    meet,
    own_samples,
    win_chances,
)
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
from lit_rlhf.options import check_option
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import (
    EvaluatedRollout,
    Generation,
    LossOutput,
    PromptBatch,
    SequenceStats,
    asked,
)

_OF_A_BATCH = (AOT, UnpairedAOT, BetaDPO)
"""Losses that look at all rows of a batch, of which a microbatch is only a part."""


@dataclass(frozen=True)
class PairedRollout(EvaluatedRollout):
    """Neighbours are a pair."""

    wins: Tensor  # (N,) float32 in [0, 1]: how far the sample is preferred to the other one of its pair


class OnlineDPOPolicyModule(PolicyModule):
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
        opponent: Whose completions the policy's samples meet; None: each other, the first with the second, the third
            with the fourth, so `num_samples` (2 by default) must be even.
        **kwargs: As for `PolicyModule`; the strength of the KL penalty is the loss's beta, and its mean over pairs the
            only reduction.

    Raises:
        ConfigurationError: num_samples is odd, or the loss needs more than log-probs of single pairs.
    """

    default_parts: ClassVar[Mapping[str, Callable[[], Any]]] = {
        **PolicyModule.default_parts,
        "reduction": SequenceSum,
        "loss": partial(DPO, 0.1),
    }
    default_samples: ClassVar[int] = 2
    in_pairs: ClassVar[bool] = True

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        loss: PairwiseLoss | None = None,
        oracle: PreferenceOracle | None = None,
        opponent: Opponent | None = None,
        **kwargs: Any,
    ) -> None:
        pair_loss: PairwiseLoss = self.part("loss", loss)
        super().__init__(
            backbone,
            reward,
            kl=FixedKL(pair_loss.beta),  # for the logs: the penalty itself is in the loss
            surrogate=None,
            importance_correction=None,
            reduction=None,
            **kwargs,
        )
        self.pair_loss = pair_loss
        self.oracle = oracle or SoftLabels()
        self.opponent = opponent
        if opponent is not None:
            self.reference.require_model(self)
        self._refuse_bad_losses()

    def sample_tokens(
        self, batch: PromptBatch, sampling: Sampling, purpose: str, num_samples: int
    ) -> Generation:
        """In training, where there is an opponent, the policy's samples and its own by turns; else the policy's."""
        own = super().sample_tokens(batch, sampling, purpose, num_samples)
        if self.opponent is None or purpose != "rollout":
            return own
        request = self.rollout_request(batch, sampling, "opponent", num_samples)
        return meet(own, self.opponent.generate(self, request))

    def estimate(self, rollout: EvaluatedRollout) -> PairedRollout:
        """The oracle's word on each pair; the loss is of preferences, not of advantages."""
        scores = self.penalized_scores(rollout)
        wins = win_chances(self.oracle, scores, seed=self.seed, iteration=self.iteration)
        return rollout.to_stage(PairedRollout, wins=wins)

    def reference_logprobs(self, minibatch: EvaluatedRollout) -> Tensor:
        """(N, T): what log-ratios are taken to; the initial policy's."""
        return minibatch.ref_logprobs

    def loss(self, minibatch: EvaluatedRollout) -> LossOutput:
        """The loss of each pair, at the last token of both of its samples: the mean over samples is that over pairs."""
        minibatch = PairedRollout.of(minibatch)
        logprobs, mask = asked(self.policy_forward(minibatch).logprobs), minibatch.response_mask
        output = self.loss_of_pairs(logprobs, minibatch)
        drift = approx_kl(logprobs.detach(), minibatch.old_logprobs, mask)[self.own_tokens(mask)]
        judged = mask.any(-1).view(-1, 2).all(-1)  # (P,)
        metrics = {**output.metrics, "loss/pair_avg": output.loss}
        metrics = {n: v[judged] if v.shape == judged.shape else v for n, v in metrics.items()}
        metrics["policy/approxkl_avg"] = drift
        loss = place_at_end(output.loss.repeat_interleave(2), mask)
        return LossOutput(loss, metrics, logprobs.detach())

    def loss_of_pairs(self, logprobs: Tensor, minibatch: PairedRollout) -> LossOutput:
        """The loss (P,) of the pairs, each side weighed by how far it is preferred."""
        wins, mask = minibatch.wins.view(-1, 2), minibatch.response_mask
        order = wins.argsort(dim=-1, descending=True, stable=True)
        policy = _statistics(logprobs, mask, order)
        reference = _statistics(self.reference_logprobs(minibatch), mask, order)
        p = wins.gather(1, order)[:, 0]
        output = self.pair_loss.of_batch(policy, reference, {"p_chosen": p})
        if bool((p == 1).all()):
            return output
        turned = order.flip(1)
        policy = _statistics(logprobs, mask, turned)
        reference = _statistics(self.reference_logprobs(minibatch), mask, turned)
        other = self.pair_loss.of_batch(policy, reference, {"p_chosen": 1 - p})
        return replace(output, loss=p * output.loss + (1 - p) * other.loss)

    def own_tokens(self, mask: Tensor) -> Tensor:
        """(N, T): of every second row, from the first, where there is an opponent; else all."""
        if self.opponent is None:
            return mask
        own = torch.arange(len(mask), device=mask.device) % 2 == 0
        return mask & own[:, None]

    def finish_iteration(self, rollout: EvaluatedRollout) -> None:
        """Log what the policy itself has sampled."""
        super().finish_iteration(rollout if self.opponent is None else own_samples(rollout))

    def _refuse_bad_losses(self) -> None:
        name = type(self.pair_loss).__name__
        beyond = sorted(self.pair_loss.statistics - {"tokens"})
        if beyond:
            raise ConfigurationError(
                f"{type(self).__name__}: {name} needs {beyond} of the policy, and rollouts hold log-probs alone. "
                "Choose another loss, such as DPO or IPO."
            )
        if isinstance(self.pair_loss, _OF_A_BATCH):
            raise ConfigurationError(
                f"{type(self).__name__}: {name} looks at a whole batch of pairs, and a minibatch is computed in parts "
                "(microbatch_tokens). Choose a loss of single pairs, such as DPO or IPO."
            )
        if self.opponent is None and self.num_samples % 2:
            raise ConfigurationError(
                f"{type(self).__name__}: num_samples={self.num_samples} samples of a prompt can't be paired; give an "
                "even number."
            )


class SPPOPolicyModule(OnlineDPOPolicyModule):
    r"""Self-play preference optimization (arXiv:2405.00675), with each rollout an iteration of its own.

    For samples of the rollout's policy $\pi_t$: $\frac12(u - \eta(P - \frac12))^2$ with $u = \log\pi(y)/\pi_t(y)$ and P
    the oracle's preference of y to its neighbour, an unbiased estimate of $P(y \succ \pi_t)$ (the authors' counts each
    sample against itself too). The optimum of a step is about $\pi_t e^{\eta P}/Z$. The initial policy does not enter,
    so nothing
    holds the policy to it: many iterations end in the preference's Nash equilibrium, which for a scalar reward is its
    best completion. Several epochs come nearer to each step's optimum than one.

    The loss is `SPPO(beta=1e-3)` by default, $\eta = 1/\beta$ as in the paper.
    """

    default_parts: ClassVar[Mapping[str, Callable[[], Any]]] = {
        **OnlineDPOPolicyModule.default_parts,
        "loss": SPPO,
    }

    def reference_logprobs(self, minibatch: EvaluatedRollout) -> Tensor:
        """Those of the policy that sampled."""
        return minibatch.old_logprobs


class XPOPolicyModule(OnlineDPOPolicyModule):
    r"""Exploratory preference optimization: online DPO against the initial policy, with optimism (arXiv:2405.21046).

    Of $y \sim \pi$ and $y' \sim \pi_{ref}$ the loss is that of online DPO plus $\alpha\log\pi(y')$, which lowers what
    the initial policy already writes. The optimum is $\pi^*$ as alpha goes to 0 only: the bonus biases it.

    Logs `loss/optimism_avg` too. `num_samples` is 1: each with one of the initial policy.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        alpha: Weight of the optimism, 0 or more, of log-probs summed over the completion; 1e-5 in the paper and TRL.
        opponent: Default `ReferenceOpponent()`.
        **kwargs: As for `OnlineDPOPolicyModule`.

    Raises:
        ConfigurationError: alpha is negative.
    """

    default_samples: ClassVar[int] = 1

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        alpha: float = 1e-5,
        opponent: Opponent | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, reward, opponent=opponent or ReferenceOpponent(), **kwargs)
        self.alpha = alpha
        check_option(alpha >= 0, self, "alpha", alpha, "0 or more")

    def loss_of_pairs(self, logprobs: Tensor, minibatch: PairedRollout) -> LossOutput:
        """The pairs' loss and the optimism."""
        output = super().loss_of_pairs(logprobs, minibatch)
        optimism = masked_sum(logprobs, minibatch.response_mask, dim=-1)[1::2]
        metrics = dict(output.metrics) | {"loss/optimism_avg": optimism}
        return LossOutput(output.loss + self.alpha * optimism, metrics)


def _statistics(logprobs: Tensor, mask: Tensor, order: Tensor) -> SequenceStats:
    """Of pairs (P, 2), in an order (P, 2) within each; log-probs are 0 where masked."""
    tokens, kept = (part.view(len(order), 2, -1) for part in (logprobs, mask))
    rows = order[:, :, None].expand_as(tokens)
    tokens, kept = tokens.gather(1, rows), kept.gather(1, rows)
    return SequenceStats(tokens.sum(-1), kept.sum(-1), tokens, kept)
