r"""Attention over grouped heads without copies of keys and values, registered with transformers by name.

transformers repeats the keys and values of grouped heads wherever there is a mask. On CPU that costs more than it
saves: SDPA takes the groups as they are. Its backward in bfloat16 is moreover about three times slower there than in
float32 (measured on SmolLM2-135M's shapes: 75 ms a layer against 27). So there short sequences are computed by whole
products (`dense_attention`) and longer ones by SDPA in float32. Shape and kind of mask decide, in training and
inference alike, so that both give the same numbers for the same rows. On other devices transformers' own function is
called, and flash kernels for branched rows where they serve (`flash_branches`).

Of branched rows, prompts and branches are computed apart within `apart`: a mask over whole rows makes every kernel
compute the pairs of different branches too, which for K branches of T tokens is about K times the work that counts.

Flash kernels take no mask and read sequences one after another, each as long as it is. The parts of branched rows lie
so already: one call gives each prompt and each branch the attention to itself, a second the branches that to their
prompts, and both are merged by their normalizers. With $\ell_c = \log\sum_j e^{s_j}$ over the keys of each call, the
whole is $\sum_c e^{\ell_c - \ell} o_c$, where $\ell = \log\sum_c e^{\ell_c}$. A kernel's backward knows of the forward
only $\ell$ and the output: given those of the whole, it gives its share of the whole's gradient, and shares add up.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_rlhf.functional.branches import (
    BranchParts,
    BranchSegments,
    branch_attention_mask,
    branch_layout,
    branch_segments,
)
from lit_rlhf.internals.torch import flash_attend, flash_attend_backward
from lit_rlhf.internals.transformers import attention_of
from lit_rlhf.models.kernels.dense_attention import dense_attention, pays

_log = logging.getLogger(__name__)
_HALVES = (torch.bfloat16, torch.float16)
_TOLERATED = 0.03
"""Of a result's norm: bfloat16 rounds to 0.004, several times on the way."""
_WIDEST = 256
NAME = "lit_rlhf_grouped"
Apart = BranchParts | BranchSegments | None
"""How prompts and branches are told apart: padded by `BranchParts`, one after another by `BranchSegments`."""
_parts: ContextVar[Apart] = ContextVar("branch_parts", default=None)


class _Attend(Protocol):
    """Attention of (B, heads, Q, d) over (B, groups, K, d) to (B, Q, heads, d); causal where there is no mask."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, /
    ) -> Tensor: ...


@contextmanager
def apart(parts: Apart) -> Iterator[None]:
    """Let layers with this attention compute prompts and branches of such rows apart; None: as the mask says."""
    token = _parts.set(parts)
    try:
        yield
    finally:
        _parts.reset(token)


def current_parts() -> Apart:
    """What `apart` was told."""
    return _parts.get()


def computes_apart(config: PretrainedConfig) -> bool:
    """Whether a model's layers heed `apart`."""
    return attention_of(config) == NAME


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Softmax attention with the signature transformers asks for.

    Args:
        module: The attention layer.
        query: (B, heads, Q, d).
        key: (B, groups, K, d).
        value: (B, groups, K, d).
        attention_mask: (B, 1, Q, K), bool (True = attends) or added to the scores.
        dropout: Of the probabilities; 0 here.
        scaling: Of the scores; default 1 / sqrt(d).
        is_causal: Where there is no mask; default: as the layer says.
        softcap: Bounds the scores (Gemma 2).
        **kwargs: What transformers passes on to other kernels.

    Returns:
        (B, Q, heads, d), and None for the probabilities.
    """
    attend: _Attend = partial(
        _attend,
        module,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        softcap=softcap,
        **kwargs,
    )
    parts, length = _parts.get(), query.shape[2]
    whole = parts is not None and query.shape[0] * length == parts.positions
    if parts is not None and whole and length == key.shape[2]:
        if isinstance(parts, BranchParts):
            return _attend_apart(attend, query, key, value, parts), None
        if is_half(query, key, value) and softcap is None and not dropout:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            return flash_branches(query, key, value, parts, scale=scale), None
    return attend(query, key, value, attention_mask), None


def _attend_apart(
    attend: _Attend, query: Tensor, key: Tensor, value: Tensor, parts: BranchParts
) -> Tensor:
    rows, _, length, _ = query.shape
    sequences, _, time, _ = parts.mask.shape
    width = parts.width

    def branches(x: Tensor) -> Tensor:
        tokens = x.transpose(1, 2).reshape(rows * length, -1).index_select(0, parts.take)
        return tokens.view(sequences, time, x.shape[1], -1).transpose(1, 2)

    def with_prompt(x: Tensor) -> Tensor:
        prompts = x[:, :, :width].repeat_interleave(sequences // rows, 0)
        return torch.cat([prompts, branches(x)], dim=2)

    prompt = attend(query[:, :, :width], key[:, :, :width], value[:, :, :width], None)
    branch = attend(branches(query), with_prompt(key), with_prompt(value), parts.mask)
    both = torch.cat([prompt.flatten(0, 1), branch.flatten(0, 1)])
    return both.index_select(0, parts.place).view(rows, length, *both.shape[1:])


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    dropout: float,
    scaling: float | None,
    is_causal: bool | None,
    softcap: float | None,
    **kwargs: Any,
) -> Tensor:
    length = query.shape[2]
    causal = getattr(module, "is_causal", True) and (is_causal is None or is_causal)
    causal = causal and mask is None and length > 1
    if softcap is not None:
        return _capped(query, key, value, mask, causal, scaling, softcap)
    special = kwargs.get("position_bias") is not None or kwargs.get("cache") is not None
    if query.device.type != "cpu" or special or (causal and key.shape[2] != length):
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, mask, dropout, scaling, is_causal, **kwargs
        )
        return result[0]
    dtype = query.dtype
    if length > 1 and dtype != torch.float32:
        if not dropout and pays(query, key, causal=causal):
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            return dense_attention(query, key, value, mask, causal=causal, scale=scale)
        query, key, value = query.float(), key.float(), value.float()
        if mask is not None and mask.is_floating_point():
            mask = mask.float()
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        dropout,
        causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.to(dtype).transpose(1, 2).contiguous()


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scaling: float | None,
    softcap: float,
) -> Tensor:
    batch, heads, length, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    scale = width**-0.5 if scaling is None else scaling
    rows = (query * scale).reshape(batch, groups, -1, width)
    scores = (rows @ key.transpose(-1, -2)).float().view(batch, heads, length, keys)
    scores = softcap * torch.tanh(scores / softcap)
    if causal:
        mask = torch.ones(length, keys, dtype=torch.bool, device=query.device).tril(keys - length)
    if mask is not None:
        boolean = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -torch.inf) if boolean else scores + mask
    weights = scores.softmax(-1).to(value.dtype).view(batch, groups, -1, keys)
    return (weights @ value).view(batch, heads, length, -1).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


# -- branched rows by flash kernels ------------------------------------------------------------------------------------


def flash_serves(device: torch.device, dtype: torch.dtype, width: int) -> bool:
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
    rows = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 1, 1, -1, -1, -1]
    ids = torch.tensor(rows, device="cpu")
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
        out, normalizer, *state = flash_attend(query, key, value, *own)  # (n, heads, d), (heads, n)
        seen_state: list[Tensor] = []
        if len(parts.asking):
            seen = (query[parts.asking], key[parts.prompt], value[parts.prompt])
            given, other, *seen_state = flash_attend(*seen, *_across(parts, scale))
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
        grads = flash_attend_backward(grad, query, key, value, out, normalizer, *own, *states[:2])
        if not len(parts.asking):
            return *grads, None, None
        where = (parts.asking, parts.prompt, parts.prompt)
        taken = [x[at] for x, at in zip((query, key, value), where, strict=True)]
        result = (out[parts.asking], normalizer[:, parts.asking].contiguous())
        across = _across(parts, ctx.scale)
        more = flash_attend_backward(grad[parts.asking], *taken, *result, *across, *states[2:])
        whole = [x.index_add(0, at, y) for x, at, y in zip(grads, where, more, strict=True)]
        return *whole, None, None


def _across(parts: BranchSegments, scale: float) -> tuple[Any, ...]:
    longest = (parts.longest_asking, parts.longest_prompt)
    return (parts.asking_from, parts.prompt_from, *longest, False, scale)
