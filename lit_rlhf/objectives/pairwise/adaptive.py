r"""Pairwise losses that weigh or bend DPO by statistics of the batch or the vocabulary. Notation as in `logistic`."""

import torch
from torch import Tensor

from lit_rlhf.distributed import gather_rows, own_rows, weighted_mean
from lit_rlhf.functional.pairwise_losses import (
    dpo_loss,
    dynamic_beta,
    gap_log_weights,
    on_policy_weight,
    tdpo2_loss,
    tdpo_loss,
)
from lit_rlhf.objectives.pairwise.base import Pairs, PairwiseLoss
from lit_rlhf.objectives.preference import require_within
from lit_rlhf.objectives.running import MovingMoments
from lit_rlhf.seeding import stable_hash, uniforms


class BetaDPO(PairwiseLoss):
    r"""beta-DPO: a beta per batch, $\beta_B = \max(10^{-3}, \beta_0(1 + \alpha(\bar h - M_0)))$ (arXiv:2407.08639).

    Of each global batch a share $1 - \rho$ is kept, sampled without replacement with weights
    $e^{-\frac12((h-M_0)/\sigma)^2}$; $\bar h$ is their mean gap (of log-ratios, not times beta). $M_0$ and $\sigma$ are
    moving averages over batches; they start at the first batch's values (the authors' start at 0), move in training
    only and are saved. In evaluation all pairs are kept.

    Args:
        beta: $\beta_0$; 0.1 in the paper.
        alpha: $\alpha$; 0.6 in the paper.
        drop: $\rho$ in [0, 1); 0.2 in the paper.
        momentum: Of the moving averages; 0.9 in the authors' code.
        seed: Of the sampling.
    """

    def __init__(
        self,
        beta: float = 0.1,
        alpha: float = 0.6,
        drop: float = 0.2,
        momentum: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__(beta)
        require_within(self, 0, 1, "[)", drop=drop, momentum=momentum)
        self.alpha = alpha
        self.drop = drop
        self.offset = stable_hash(seed, "beta-dpo")
        self.moments = MovingMoments(momentum)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        gaps = (pairs.chosen.logratios - pairs.rejected.logratios).detach()
        weights = pairs.batch.get("weight")
        kept = torch.ones_like(gaps)
        if self.training:
            self.moments.update(gaps, weights)
            kept = own_rows(self._keep(gather_rows(gaps))).to(gaps.dtype)
        mean = weighted_mean(gaps, kept if weights is None else kept * weights)
        beta = dynamic_beta(mean, self.moments.mean, self.beta, self.alpha)
        loss = dpo_loss(pairs.chosen.logratios, pairs.rejected.logratios, beta)
        return loss * kept / weighted_mean(kept, weights)

    def _keep(self, gaps: Tensor) -> Tensor:
        """Which rows of the global batch stay; Gumbel noise makes a top-k a weighted draw without replacement."""
        count = max(int(len(gaps) * (1 - self.drop)), 1)
        seeds = (
            torch.arange(len(gaps), device=gaps.device)
            + self.offset
            + self.moments.count * (1 << 24)
        )
        noise = uniforms(seeds, 0).clamp_min(1e-300)
        keys = (
            gap_log_weights(gaps, self.moments.mean, self.moments.std).double()
            - (-noise.log()).log()
        )
        return torch.zeros_like(gaps, dtype=torch.bool).index_fill(
            0, keys.topk(count).indices, True
        )


class WPO(PairwiseLoss):
    r"""DPO weighted by $\mathrm{sg}\min(1, w(y_w)w(y_l))$, how likely the policy is to write it (arXiv:2406.11827).

    $w(y) = \exp\frac1n\sum_t\log\frac{\pi(y_t)}{\sum_v\pi(v)^2}$. The optimum is DPO's.

    Args:
        beta: Strength of the KL penalty; 0.01 in the paper.
    """

    statistics = frozenset(["collision"])

    def __init__(self, beta: float = 0.01) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        w, l = pairs.chosen, pairs.rejected  # noqa: E741 - as in the equation
        collision_w, collision_l = pairs.statistic("collision")
        weight = on_policy_weight(
            w.logprobs, l.logprobs, collision_w, collision_l, w.lengths, l.lengths
        )
        return weight * dpo_loss(w.logratios, l.logratios, self.beta)


class TDPO1(PairwiseLoss):
    r"""$-\log\sigma(\beta(h - (D_l - D_w)))$ with $D = \sum_t KL(\pi_{ref}(\cdot|s_t)\|\pi(\cdot|s_t))$.

    TDPO1, arXiv:2404.11999. Needs the reference live: the divergence is over its whole vocabulary.

    Args:
        beta: Strength of the KL penalty; 0.1 in the paper.
    """

    statistics = frozenset(["kl"])

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return tdpo_loss(
            pairs.chosen.logratios, pairs.rejected.logratios, *pairs.statistic("kl"), beta=self.beta
        )


class TDPO2(PairwiseLoss):
    r"""$-\log\sigma(\beta(h - \alpha(D_l - \mathrm{sg}\,D_w)))$, D as in `TDPO1` (TDPO2, arXiv:2404.11999).

    Args:
        beta: Strength of the KL penalty; 0.1 in the paper.
        alpha: Weight of the divergences; 0.5 in the paper.
    """

    statistics = frozenset(["kl"])

    def __init__(self, beta: float = 0.1, alpha: float = 0.5) -> None:
        super().__init__(beta)
        self.alpha = alpha

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        kl = pairs.statistic("kl")
        return tdpo2_loss(
            pairs.chosen.logratios, pairs.rejected.logratios, *kl, beta=self.beta, alpha=self.alpha
        )
