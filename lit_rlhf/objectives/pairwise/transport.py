r"""AOT: losses of sorted batches (arXiv:2406.05882)."""

from torch import Tensor

from lit_rlhf.distributed import gather_rows
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.pairwise_losses import aot_loss, aot_unpaired_loss
from lit_rlhf.objectives.pairwise.base import Pairs, PairwiseLoss
from lit_rlhf.objectives.preference import Batch


class _SortedLoss(PairwiseLoss):
    def check(self, batch: Batch) -> None:
        """A row's weight has no place in a loss of ranks."""
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

    def __init__(self, beta: float = 0.01) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Losses by rank over the global batch."""
        margins = pairs.chosen.logprobs - pairs.rejected.logprobs
        ref_margins = margins - (pairs.chosen.logratios - pairs.rejected.logratios)
        return aot_loss(gather_rows(margins), gather_rows(ref_margins.detach()), self.beta)


class UnpairedAOT(_SortedLoss):
    r"""$-\log\sigma(\beta(\mathrm{sort}(u_w) - \mathrm{sort}(u_l)))$ (AOT, arXiv:2406.05882).

    For data whose chosen and rejected completions are not paired, or for forgetting that they are.

    Args:
        beta: Strength of the penalty; 0.01 in the paper.
    """

    def __init__(self, beta: float = 0.01) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Losses by rank over the global batch."""
        return aot_unpaired_loss(
            gather_rows(pairs.chosen.logratios), gather_rows(pairs.rejected.logratios), self.beta
        )
