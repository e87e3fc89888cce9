r"""Pairwise losses that weigh or bend DPO by the whole batch or the whole vocabulary. Notation as in `logistic`."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from lit_rlhf.distributed import gather_rows, own_rows, weighted_mean
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.numerics import per_token
from lit_rlhf.functional.shapes import Rows
from lit_rlhf.objectives.columns import Batch
from lit_rlhf.objectives.preference import Completion, PairwiseLoss
from lit_rlhf.objectives.running import MovingMoments
from lit_rlhf.options import check_option
from lit_rlhf.seeding import stable_hash, uniforms


class BetaDPO(PairwiseLoss):
    r"""beta-DPO: a beta per batch, $\beta_B = \max(10^{-3}, \beta_0(1 + \alpha(\bar h - M_0)))$ (arXiv:2407.08639).

    Of each global batch a share $1 - \rho$ is kept, sampled without replacement with weights
    $e^{-\frac12((h-M_0)/\sigma)^2}$; $\bar h$ is their mean gap (of log-ratios, not times beta). $M_0$ and $\sigma$ are
    moving averages over batches; they start at the first batch's values (the authors' start at 0), move in training
    only and are saved. In evaluation all pairs are kept.

    Args:
        beta: $\beta_0$; 0.1 in the paper.
        alpha: How strongly a batch of clear pairs raises beta; 0.6 in the paper, 0 is DPO of what is kept.
        drop: $\rho$ in [0, 1); 0.2 in the paper.
        momentum: Of the moving averages, in [0, 1); 0.9 in the authors' code.
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
        check_option(0 <= drop < 1, self, "drop", drop, "in [0, 1)")
        check_option(0 <= momentum < 1, self, "momentum", momentum, "in [0, 1)")
        self.alpha = alpha
        self.drop = drop
        self.offset = stable_hash(seed, "beta-dpo")
        self.moments = MovingMoments(momentum)

    def forward(
        self, chosen: Completion, rejected: Completion, *, weight: Rows | None = None
    ) -> Rows:
        """`weight` is that of each pair in the averages. Pairs that are dropped have loss 0, the others more for it."""
        h = chosen.logratios - rejected.logratios
        gaps, kept = h.detach(), torch.ones_like(h)
        if self.training:
            self.moments.update(gaps, weight)
            kept = own_rows(self._keep(gather_rows(gaps)), gaps).to(gaps.dtype)
        mean = weighted_mean(gaps, kept if weight is None else kept * weight)
        beta = (self.beta * (1 + self.alpha * (mean - self.moments.mean))).clamp_min(1e-3)
        return softplus(-beta * h) * kept / weighted_mean(kept, weight)

    def _keep(self, gaps: Rows) -> Tensor:
        """Which rows of the global batch stay; Gumbel noise makes a top-k a weighted draw without replacement."""
        count = max(int(len(gaps) * (1 - self.drop)), 1)
        rows = torch.arange(len(gaps), device=gaps.device)
        noise = uniforms(rows + self.offset + self.moments.count * (1 << 24), 0).clamp_min(1e-300)
        std = torch.where(self.moments.std > 0, self.moments.std, torch.inf)
        log_weights = -0.5 * ((gaps - self.moments.mean) / std).square()
        keys = log_weights.double() - (-noise.log()).log()
        kept = torch.zeros_like(gaps, dtype=torch.bool)
        return kept.index_fill(0, keys.topk(count).indices, True)


class WPO(PairwiseLoss):
    r"""DPO weighted by $\mathrm{sg}\min(1, w(y_w)w(y_l))$, how likely the policy is to write it (arXiv:2406.11827).

    $w(y) = \exp\frac1n\sum_t\log\frac{\pi(y_t)}{\sum_v\pi(v)^2}$. The optimum is DPO's. A greedy token has a larger
    probability than that of two draws agreeing, so w may exceed 1; the paper has no cap, its authors' code and TRL cap
    the product of both at 1, as here.

    Args:
        beta: Strength of the KL penalty; 0.01 in the paper.
    """

    statistics = frozenset(["collision"])

    def __init__(self, beta: float = 0.01) -> None:
        super().__init__(beta)

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        weight = (self._log_weight(chosen) + self._log_weight(rejected)).detach().exp().clamp_max(1)
        return weight * softplus(-self.beta * (chosen.logratios - rejected.logratios))

    def _log_weight(self, completion: Completion) -> Rows:
        surprise = completion.logprobs - completion.statistic("collision")
        return per_token(surprise, completion.lengths)


class TDPO1(PairwiseLoss):
    r"""$-\log\sigma(\beta(h - (D_l - D_w)))$ with $D = \sum_t KL(\pi_{ref}(\cdot|s_t)\|\pi(\cdot|s_t))$.

    TDPO1, arXiv:2404.11999. Needs the reference live: the divergence is over its whole vocabulary.

    Args:
        beta: Strength of the KL penalty; 0.1 in the paper.
    """

    statistics = frozenset(["kl"])

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        drift = rejected.statistic("kl") - chosen.statistic("kl")
        return softplus(-self.beta * (chosen.logratios - rejected.logratios - drift))


class TDPO2(PairwiseLoss):
    r"""$-\log\sigma(\beta(h - \alpha(D_l - \mathrm{sg}\,D_w)))$, D as in `TDPO1` (TDPO2, arXiv:2404.11999).

    No gradient flows through $D_w$, so the rejected side's divergence is a force that pulls towards the reference.

    Args:
        beta: Strength of the KL penalty; 0.1 in the paper.
        alpha: Weight of the divergences; 0.5 in the paper.
    """

    statistics = frozenset(["kl"])

    def __init__(self, beta: float = 0.1, alpha: float = 0.5) -> None:
        super().__init__(beta)
        self.alpha = alpha

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        drift = self.alpha * (rejected.statistic("kl") - chosen.statistic("kl").detach())
        return softplus(-self.beta * (chosen.logratios - rejected.logratios - drift))


# -- optimal transport ------------------------------------------------------------------------------------------------


class _SortedLoss(PairwiseLoss):
    """First-order stochastic dominance is dominance quantile by quantile: both sides are sorted, then compared."""

    of_all_ranks = True

    def __init__(self, beta: float = 0.01) -> None:
        super().__init__(beta)

    def check(self, batch: Batch) -> None:
        """A row's weight has no place in a loss of ranks."""
        super().check(batch)
        if "weight" in batch:
            raise ConfigurationError(
                f"{type(self).__name__} sorts the batch, so it can't heed a row's `weight`. Drop that column or choose "
                "another loss."
            )


class AOT(_SortedLoss):
    r"""$-\log\sigma(\beta(\mathrm{sort}(l_w-l_l) - \mathrm{sort}(l^{ref}_w-l^{ref}_l)))$ (AOT, arXiv:2406.05882).

    Sorted over the global batch (all processes; with accumulation each microbatch by itself), so the loss depends on
    the batch's size; with one pair it is DPO. TRL's old `aot_pair` is `UnpairedAOT`.

    Args:
        beta: Strength of the penalty; 0.01 in the paper.
    """

    def forward(self, chosen: Completion, rejected: Completion) -> Float[Tensor, " ranks"]:
        """Losses by rank over the global batch, smallest margin first."""
        margins = chosen.logprobs - rejected.logprobs
        ref_margins = (margins - (chosen.logratios - rejected.logratios)).detach()
        gap = gather_rows(margins).sort().values - gather_rows(ref_margins).sort().values
        return softplus(-self.beta * gap)


class UnpairedAOT(_SortedLoss):
    r"""$-\log\sigma(\beta(\mathrm{sort}(u_w) - \mathrm{sort}(u_l)))$ (AOT, arXiv:2406.05882).

    For data whose chosen and rejected completions are not paired, or for forgetting that they are.

    Args:
        beta: Strength of the penalty; 0.01 in the paper.
    """

    def forward(self, chosen: Completion, rejected: Completion) -> Float[Tensor, " ranks"]:
        """Losses by rank over the global batch, smallest log-ratio first."""
        uw, ul = gather_rows(chosen.logratios), gather_rows(rejected.logratios)
        return softplus(-self.beta * (uw.sort().values - ul.sort().values))
