"""The branched batch: where each branch's tokens lie, which token predicts which, and what attends to what.

A row is `prompt ++ branch_1 ++ ... ++ branch_K`, right-padded. `branch_ids` say to which part a token belongs: 0 is the
prompt, 1..K a branch, -1 padding. Axes: B rows, L positions, K branches, T tokens of the longest branch, N = B * K.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_rlhf.functional.numerics import cumulative_sum
from lit_rlhf.functional.shapes import Mask, Sequences, Tokens

Positions = Int[Tensor, "rows length"]
"""(B, L)."""
PartLengths = Int[Tensor, "rows parts"]
"""(B, 1 + K)."""


class BranchLayout(NamedTuple):
    """Indices into a branched row, one line per branch."""

    index: Int[Tensor, "rows branches time"]  # type: ignore[assignment]  # in place of tuple.index
    """Position of the branch's t-th token (0 where masked)."""
    source: Int[Tensor, "rows branches time"]
    """Position whose hidden state predicts that token: the one before it, or the prompt's last for the first token."""
    mask: Bool[Tensor, "rows branches time"]
    """Whether the token exists."""
    last: Int[Tensor, "rows branches"]
    """Position of the branch's last token (0 where the branch is empty)."""
    lengths: PartLengths
    """(B, 1 + K) on the CPU, so that sizes cost no wait for a device: tokens of the prompt and of each branch."""


class ExpandedRows(NamedTuple):
    """The same branches as ordinary rows `prompt ++ branch`, right-padded."""

    input_ids: Int[Tensor, "sequences length"]
    position_ids: Int[Tensor, "sequences length"]
    mask: Bool[Tensor, "sequences length"]
    branch_ids: Int[Tensor, "sequences length"]
    """0 = prompt, 1 = the branch, -1 = padding: a branched batch with one branch a row."""
    lengths: Int[Tensor, "sequences two"]
    """(N, 2) on the CPU: tokens of the prompt and of the branch."""


class BranchParts(NamedTuple):
    """Where prompts and branches lie in branched rows, for what is computed of the two apart; P = longest prompt."""

    width: int
    """P."""
    take: Int[Tensor, " places"]
    """(N * T,) position in (B * L) of each branch's tokens; any position of the row where there is none."""
    place: Int[Tensor, " positions"]
    """(B * L,) where each position stands in (B * P) positions of prompts followed by the (N * T) of branches."""
    mask: Bool[Tensor, "sequences 1 time keys"]
    """(N, 1, T, P + T): a branch's tokens attend to its prompt and to those before them in the branch."""

    @property
    def positions(self) -> int:
        """B * L."""
        return len(self.place)


class BranchSegments(NamedTuple):
    """Where the parts of branched rows lie one after another among (B * L) positions, for kernels that read them so.

    n tokens of branches, m of prompts; places where sequences begin are int32 and end with the end of the last.
    """

    own: Int[Tensor, " starts"]
    """Where each part begins: prompt, branches and padding of each row."""
    longest: int
    asking: Int[Tensor, " queries"]
    """(n,) positions of the branches' tokens, row by row."""
    asking_from: Int[Tensor, " rows_and_one"]
    """Where those of each row begin among the n."""
    longest_asking: int
    prompt: Int[Tensor, " keys"]
    """(m,) positions of the prompts' tokens."""
    prompt_from: Int[Tensor, " rows_and_one"]
    longest_prompt: int
    positions: int
    """B * L."""


class PackedRows(NamedTuple):
    """The three tensors of a branched batch."""

    input_ids: Positions
    branch_ids: Positions
    position_ids: Positions


def branch_layout(
    branch_ids: Positions, num_branches: int, known: PartLengths | None = None
) -> BranchLayout:
    """Find the tokens of each branch and the positions that predict them.

    Args:
        branch_ids: (B, L); the parts of a row are contiguous and in order.
        num_branches: K; branches that a row lacks come out empty.
        known: (B, 1 + K), the lengths of the parts on the CPU; without them a device is waited for.

    Returns:
        Indices of shape (B, K, T) and (B, K), with T the length of the longest branch (at least 1).

    Example:
        >>> layout = branch_layout(torch.tensor([[0, 0, 1, 1, 2, -1]]), 2)
        >>> layout.index.tolist(), layout.source.tolist()
        ([[[2, 3], [4, 0]]], [[[1, 2], [1, 0]]])
    """
    wanted = torch.arange(1, num_branches + 1, device=branch_ids.device)
    member = branch_ids[:, None, :] == wanted[None, :, None]  # (B, K, L)
    counts = part_lengths(branch_ids, num_branches)
    prompt_last, lengths = counts[:, 0] - 1, counts[:, 1:]
    on_host = (counts if known is None else known).cpu()
    start = member.int().argmax(-1)
    longest = int(on_host[:, 1:].max()) if lengths.numel() else 0
    steps = torch.arange(max(longest, 1), device=branch_ids.device)
    mask = steps < lengths[..., None]
    index = (start[..., None] + steps) * mask
    first = steps == 0
    source = torch.where(first, prompt_last[:, None, None], index - 1).clamp_min(0) * mask
    last = (start + lengths - 1) * (lengths > 0)
    return BranchLayout(index, source, mask, last, on_host)


def branch_attention_mask(branch_ids: Positions) -> Bool[Tensor, "rows 1 length length"]:
    """Token i attends to j when j <= i and j belongs to the prompt or to i's own branch (True = attends).

    Padding attends to padding and the prompt alone, so that no row of the mask is empty and no softmax gives nan.
    """
    length = branch_ids.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=branch_ids.device).tril()
    same = branch_ids[:, :, None] == branch_ids[:, None, :]
    prompt = (branch_ids == 0)[:, None, :]
    return (causal & (same | prompt))[:, None]


def branch_parts(branch_ids: Positions, layout: BranchLayout) -> BranchParts:
    """Divide branched rows into prompts and branches; `layout` is theirs.

    Padding is counted to the prompts, whatever stands there.
    """
    rows, length = branch_ids.shape
    _, branches, time = layout.index.shape
    prompt_lengths = (branch_ids == 0).sum(-1)
    width = max(int(layout.lengths[:, 0].max()), 1)
    offset = torch.arange(rows, device=branch_ids.device)[:, None] * length
    take = (layout.index.flatten(1) + offset).flatten()
    steps = torch.arange(length, device=branch_ids.device).clamp_max(width - 1)
    place = (torch.arange(rows, device=branch_ids.device)[:, None] * width + steps).flatten()
    exists = existing(layout).to(branch_ids.device, non_blocking=True)
    place = place.index_copy(0, take[exists], rows * width + exists)
    in_prompt = torch.arange(width, device=branch_ids.device) < prompt_lengths[:, None]
    before = torch.ones(time, time, dtype=torch.bool, device=branch_ids.device).tril()
    sequences = rows * branches
    prompt = in_prompt.repeat_interleave(branches, 0)[:, None].expand(sequences, time, width)
    mask = torch.cat([prompt, before.expand(sequences, time, time)], dim=-1)[:, None]
    return BranchParts(width, take, place, mask)


def part_lengths(branch_ids: Positions, num_branches: int) -> PartLengths:
    """(B, 1 + K): tokens of each row's prompt and of its branches.

    Example:
        >>> part_lengths(torch.tensor([[0, 0, 1, 1, 2, -1]]), 2)
        tensor([[2, 2, 1]])
    """
    parts = torch.arange(num_branches + 1, device=branch_ids.device)
    return (branch_ids[:, None, :] == parts[None, :, None]).sum(-1)


def existing(layout: BranchLayout) -> Int[Tensor, " tokens"]:
    """On the CPU: where among (N * T) there are tokens of branches."""
    steps = torch.arange(layout.mask.shape[-1], device="cpu")
    return (steps < layout.lengths[:, 1:, None]).flatten().nonzero().squeeze(-1)


def branch_segments(branch_ids: Positions, layout: BranchLayout) -> BranchSegments:
    """Find the parts of branched rows as sequences that lie one after another; `layout` is theirs."""
    rows, length = branch_ids.shape
    lengths = layout.lengths
    prompts, branches = lengths[:, 0], lengths[:, 1:].sum(-1)
    own = torch.cat([lengths, (length - lengths.sum(-1))[:, None]], dim=1).flatten()
    steps = torch.arange(length, device="cpu")
    in_prompt = steps < prompts[:, None]
    in_branch = ~in_prompt & (steps < (prompts + branches)[:, None])

    def moved(x: Tensor) -> Tensor:
        return x.to(branch_ids.device, non_blocking=True)

    def begins(counts: Tensor) -> Tensor:
        return moved(torch.nn.functional.pad(cumulative_sum(counts), (1, 0)).int())

    return BranchSegments(
        own=begins(own),
        longest=int(own.max()),
        asking=moved(in_branch.flatten().nonzero().squeeze(-1)),
        asking_from=begins(branches),
        longest_asking=int(branches.max()),
        prompt=moved(in_prompt.flatten().nonzero().squeeze(-1)),
        prompt_from=begins(prompts),
        longest_prompt=int(prompts.max()),
        positions=rows * length,
    )


def expand_branches(
    input_ids: Positions, branch_ids: Positions, layout: BranchLayout, pad_token_id: int = 0
) -> ExpandedRows:
    """Lay each branch out as a row of its own, with its own copy of the prompt; `layout` is that of the rows.

    Returns:
        N = B * K rows, sequence n = row * K + branch, right-padded to the longest.
    """
    rows, branches, width = layout.index.shape
    prompt_lengths = (branch_ids == 0).sum(-1)
    lengths = layout.mask.sum(-1)
    on_host = layout.lengths
    prompts, answers = on_host[:, :1].expand(rows, branches), on_host[:, 1:]
    longest = int((prompts + answers).max())
    steps = torch.arange(longest, device=branch_ids.device)
    in_prompt = (steps < prompt_lengths[:, None])[:, None, :].expand(rows, branches, longest)
    offset = steps - prompt_lengths[:, None, None]  # (B, 1, longest)
    in_branch = (offset >= 0) & (offset < lengths[..., None])
    pick = layout.index.gather(-1, offset.clamp(0, width - 1).expand(rows, branches, longest))
    index = torch.where(in_prompt, steps, pick)
    mask = in_prompt | in_branch
    tokens = input_ids[:, None, :].expand(rows, branches, -1).gather(-1, index * mask)
    flat = rows * branches
    return ExpandedRows(
        input_ids=torch.where(mask, tokens, pad_token_id).reshape(flat, longest),
        position_ids=steps.expand(flat, longest),
        mask=mask.reshape(flat, longest),
        branch_ids=torch.where(in_prompt, 0, torch.where(in_branch, 1, -1)).reshape(flat, longest),
        lengths=torch.stack([prompts, answers], -1).view(-1, 2),
    )


def pack_branches(
    prompt_ids: Int[Tensor, "rows prompt"],
    prompt_mask: Bool[Tensor, "rows prompt"],
    tokens: Int[Tensor, "sequences time"],
    mask: Mask,
    pad_token_id: int = 0,
    lengths: PartLengths | None = None,
) -> PackedRows:
    """Join prompts and their completions to branched rows: the inverse of `expand_branches`.

    Args:
        prompt_ids: (B, P), right-padded.
        prompt_mask: (B, P).
        tokens: (N, T), the K = N / B completions of a prompt as neighbours, right-padded.
        mask: (N, T).
        pad_token_id: What padding is filled with; it is never read.
        lengths: (B, 1 + K) tokens of each part on the CPU, where known; without them a device is waited for.
    """
    rows = prompt_ids.shape[0]
    branches = tokens.shape[0] // max(rows, 1)
    wide_mask = torch.cat([prompt_mask, mask.view(rows, -1)], dim=-1)
    wide_ids = torch.cat([prompt_ids, tokens.view(rows, -1)], dim=-1)
    which = torch.arange(1, branches + 1, device=tokens.device).repeat_interleave(tokens.shape[1])
    wide_branch = torch.cat([torch.zeros_like(prompt_ids), which.expand(rows, -1)], dim=-1)
    within = torch.arange(tokens.shape[1], device=tokens.device).repeat(branches)
    prompt_lengths = prompt_mask.sum(-1, keepdim=True)
    prompt_positions = torch.arange(prompt_ids.shape[1], device=tokens.device).expand(rows, -1)
    wide_position = torch.cat([prompt_positions, prompt_lengths + within], dim=-1)
    # A stable sort by "is padding" moves the tokens that count to the front and keeps their order.
    width = int((wide_mask if lengths is None else lengths).sum(-1).max())
    order = (~wide_mask).int().argsort(dim=-1, stable=True)[:, :width]
    kept = wide_mask.gather(-1, order)
    return PackedRows(
        input_ids=torch.where(kept, wide_ids.gather(-1, order), pad_token_id),
        branch_ids=torch.where(kept, wide_branch.gather(-1, order), -1),
        position_ids=torch.where(kept, wide_position.gather(-1, order), 0),
    )


def at_step_ends(
    before: Tokens, last: Sequences, mask: Mask, ends: Int[Tensor, "sequences steps"]
) -> Float[Tensor, "sequences steps"]:
    """Numbers at the state after given tokens, from those at the state before each token and after the last.

    Args:
        before: (N, T), at the state before each token.
        last: (N,), at the state after each sequence's last token.
        mask: (N, T): tokens that exist.
        ends: (N, S): places of tokens within the sequence.

    Example:
        >>> whole = torch.tensor([[True, True, True]])
        >>> at_step_ends(
        ...     torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([4.0]), whole, torch.tensor([[0, 2]])
        ... )
        tensor([[2., 4.]])
    """
    following = torch.cat([before[:, 1:], before[:, :1]], dim=1).gather(1, ends)
    return torch.where(ends == mask.sum(-1, keepdim=True) - 1, last[:, None], following)


def add_mismatched_branches(
    input_ids: Positions,
    branch_ids: Positions,
    pad_token_id: int = 0,
    following: Callable[[Tensor], Tensor] = lambda rows: rows.roll(-1, 0),
) -> PackedRows:
    """Give each row of a batch with one branch a second one: the completion of the next row, or of the first.

    Args:
        input_ids: (B, L), rows `prompt ++ branch`.
        branch_ids: (B, L): 0 = prompt, 1 = the branch, -1 = padding.
        pad_token_id: What padding is filled with; it is never read.
        following: From completions (B, T), -1 behind their ends, to those of the next rows, which may be wider.

    Example:
        >>> rows = add_mismatched_branches(
        ...     torch.tensor([[7, 1], [8, 2]]), torch.tensor([[0, 1], [0, 1]])
        ... )
        >>> rows.input_ids.tolist()
        [[7, 1, 2], [8, 2, 1]]
    """
    layout = branch_layout(branch_ids, 1)
    own = torch.where(layout.mask[:, 0], input_ids.gather(1, layout.index[:, 0]), -1)  # (B, T)
    others = following(own)
    own = torch.nn.functional.pad(own, (0, others.shape[1] - own.shape[1]), value=-1)
    both = torch.stack([own, others], dim=1).flatten(0, 1)  # (2 * B, T)
    prompts = branch_ids == 0
    return pack_branches(input_ids, prompts, both.clamp_min(0), both >= 0, pad_token_id)
