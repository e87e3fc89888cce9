"""Completions of other prompts, for estimates of a divergence that the labels have no part in (layer L1)."""

from jaxtyping import Int
from torch import Tensor

from lit_rlhf.functional.branches import PackedRows, branch_layout, pack_branches


def add_mismatched_branches(
    input_ids: Int[Tensor, "rows length"],
    branch_ids: Int[Tensor, "rows length"],
    pad_token_id: int = 0,
) -> PackedRows:
    """Give each row of a batch with one branch a second one: the completion of the next row, or of the first.

    Args:
        input_ids: (B, L), rows `prompt ++ branch`.
        branch_ids: (B, L): 0 = prompt, 1 = the branch, -1 = padding.
        pad_token_id: What padding is filled with; it is never read.

    Example:
        >>> import torch
        >>> rows = add_mismatched_branches(
        ...     torch.tensor([[7, 1], [8, 2]]), torch.tensor([[0, 1], [0, 1]])
        ... )
        >>> rows.input_ids.tolist()
        [[7, 1, 2], [8, 2, 1]]
    """
    layout = branch_layout(branch_ids, 1)
    mask = layout.mask.expand(-1, 2, -1).clone()
    tokens = input_ids.gather(1, layout.index[:, 0])[:, None].expand(-1, 2, -1).clone()
    mask[:, 1], tokens[:, 1] = mask[:, 0].roll(-1, 0), tokens[:, 0].roll(-1, 0)
    return pack_branches(
        input_ids, branch_ids == 0, tokens.flatten(0, 1), mask.flatten(0, 1), pad_token_id
    )
