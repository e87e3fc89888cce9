r"""Attention of branched rows by flash kernels: no mask, no copies of grouped heads, no pair that doesn't count.

Flash kernels read sequences one after another, each as long as it is. The parts of branched rows lie so already: one
call gives each prompt and each branch the attention to itself, a second the branches that to their prompts, and both
are merged by their normalizers. With $\ell_c = \log\sum_j e^{s_j}$ over the keys of each call, the whole is
$\sum_c e^{\ell_c - \ell} o_c$, where $\ell = \log\sum_c e^{\ell_c}$. A kernel's backward knows of the forward only
$\ell$ and the output: given those of the whole, it gives its share of the whole's gradient, and shares add up.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lit_rlhf.functional.branches import (
    BranchSegments,
    branch_attention_mask,
    branch_layout,
    branch_segments,
)
from lit_rlhf.internals.torch import attend, attend_backward

_log = logging.getLogger(__name__)
_HALVES = (torch.bfloat16, torch.float16)
_TOLERATED = 0.03
"""Of a result's norm: bfloat16 rounds to 0.004, several times on the way."""
_WIDEST = 256


def serves(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the kernels here can be used: asked once of each kind, and said in the log where they can't.

    Args:
        device: Of the model; of the meta device it is taken that they will.
        dtype: That products are computed in.
        width: Of a head.
    """
    if device.type not in ("cuda", "meta") or dtype not in _HALVES or width > _WIDEST or width % 8:
        return False
    return device.type == "meta" or _obstacle(device, dtype, width) is None


@cache
def _obstacle(device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """What keeps the kernels from being used; they are compared with plain attention before that."""
    try:
        with torch.autocast(device.type, enabled=False):
            gap = largest_gap(device, dtype, width)
        reason = None if gap <= _TOLERATED else f"it differs from plain attention by {gap:.2g}"
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if reason is not None:
        _log.warning(
            "Branched attention on %s in %s with heads of %d can't use flash kernels, so it computes with masks, which "
            "is slower and takes more memory. %s",
            torch.cuda.get_device_name(device) if device.type == "cuda" else device,
            dtype,
            width,
            reason,
        )
    return reason


def is_half(*tensors: Tensor) -> bool:
    """Whether all are of one dtype that the kernels take."""
    kinds = {x.dtype for x in tensors}
    return len(kinds) == 1 and kinds <= set(_HALVES)


@torch.inference_mode(False)
@torch.enable_grad()
def largest_gap(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Of a small example's output and gradients: the largest difference from plain attention, by the norm."""
    ids = torch.tensor(
        [[0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 1, 1, -1, -1, -1]],
        device="cpu",
    )
    random = torch.Generator().manual_seed(0)  # of the CPU, whatever the default device is
    query, key, value, grad = (
        torch.randn(*ids.shape, heads, width, generator=random, device="cpu").to(device, dtype)
        for heads in (4, 2, 2, 4)
    )
    parts = branch_segments(ids.to(device), branch_layout(ids.to(device), 2))
    inputs = [x.detach().transpose(1, 2).requires_grad_() for x in (query, key, value)]
    ours = flash_branches(inputs[0], inputs[1], inputs[2], parts, scale=width**-0.5)
    real = (ids >= 0).to(device)[..., None, None]  # what padding gives nobody reads
    found = [(ours * real).detach(), *torch.autograd.grad(ours, inputs, grad * real)]
    plain = [x.detach().float().requires_grad_() for x in inputs]
    mask = branch_attention_mask(ids.to(device))
    keys, values = (x.repeat_interleave(2, 1) for x in plain[1:])
    theirs = F.scaled_dot_product_attention(plain[0], keys, values, mask, scale=width**-0.5)
    theirs = theirs.transpose(1, 2)
    expected = [(theirs * real).detach(), *torch.autograd.grad(theirs, plain, grad.float() * real)]
    gaps = [float((a.float() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
    return max(gap if gap == gap else torch.inf for gap in gaps)  # noqa: PLR0124 - nan isn't equal to itself


def flash_branches(
    query: Tensor, key: Tensor, value: Tensor, parts: BranchSegments, *, scale: float
) -> Tensor:
    """Attention of branched rows; padding attends to itself.

    Args:
        query: (B, heads, L, d), in bfloat16 or float16.
        key: (B, groups, L, d).
        value: (B, groups, L, d).
        parts: Where prompts and branches lie.
        scale: Of the scores.

    Returns:
        (B, L, heads, d).
    """
    rows, _, length, _ = query.shape
    flat = [x.transpose(1, 2).reshape(rows * length, x.shape[1], -1) for x in (query, key, value)]
    apply: Callable[..., Tensor] = _FlashBranches.apply
    return apply(*flat, parts, scale).view(rows, length, query.shape[1], -1)


class _FlashBranches(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: BranchSegments, scale: float
    ) -> Tensor:
        own = (parts.own, parts.own, parts.longest, parts.longest, True, scale)
        out, normalizer, *state = attend(query, key, value, *own)  # (n, heads, d), (heads, n)
        seen_state: list[Tensor] = []
        if len(parts.asking):
            seen = (query[parts.asking], key[parts.prompt], value[parts.prompt])
            given, other, *seen_state = attend(*seen, *_across(parts, scale))
            other = other.masked_fill(other == torch.inf, -torch.inf)  # without keys it is inf
            mine = normalizer[:, parts.asking]
            whole = torch.logaddexp(mine, other)
            share, rest = ((each - whole).exp().T[..., None] for each in (mine, other))
            mixed = share * out[parts.asking] + rest * given
            out = out.index_copy(0, parts.asking, mixed.to(out.dtype))
            normalizer = normalizer.index_copy(1, parts.asking, whole)
        ctx.save_for_backward(query, key, value, out, normalizer, *state, *seen_state)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, normalizer, *states = ctx.saved_tensors
        parts: BranchSegments = ctx.parts
        grad = grad.contiguous()
        own = (parts.own, parts.own, parts.longest, parts.longest, True, ctx.scale)
        grads = attend_backward(grad, query, key, value, out, normalizer, *own, *states[:2])
        if not len(parts.asking):
            return *grads, None, None
        where = (parts.asking, parts.prompt, parts.prompt)
        taken = [x[at] for x, at in zip((query, key, value), where, strict=True)]
        result = (out[parts.asking], normalizer[:, parts.asking].contiguous())
        across = _across(parts, ctx.scale)
        more = attend_backward(grad[parts.asking], *taken, *result, *across, *states[2:])
        whole = [x.index_add(0, at, y) for x, at, y in zip(grads, where, more, strict=True)]
        return *whole, None, None


def _across(parts: BranchSegments, scale: float) -> tuple[Any, ...]:
    longest = (parts.longest_asking, parts.longest_prompt)
    return (parts.asking_from, parts.prompt_from, *longest, False, scale)
