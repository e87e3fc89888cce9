"""Attention over grouped heads without copies of keys and values, registered with transformers by name.

transformers repeats the keys and values of grouped heads wherever there is a mask. On CPU that costs more than it
saves: SDPA takes the groups as they are. Its backward in bfloat16 is moreover about three times slower there than in
float32 (measured on SmolLM2-135M's shapes: 75 ms a layer against 27). So there short sequences are computed by whole
products (`dense_attention`) and longer ones by SDPA in float32. Shape and kind of mask decide, in training and
inference alike, so that both give the same numbers for the same rows. On other devices transformers' own function is
called, and flash kernels for branched rows where they serve (`flash_branches`).

Of branched rows, prompts and branches are computed apart within `apart`: a mask over whole rows makes every kernel
compute the pairs of different branches too, which for K branches of T tokens is about K times the work that counts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_rlhf.functional.branches import BranchParts, BranchSegments
from lit_rlhf.internals.transformers import attention_of
from lit_rlhf.models.kernels.dense_attention import dense_attention, pays
from lit_rlhf.models.kernels.flash_branches import flash_branches, is_half

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


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Switch a model from transformers' SDPA to the function here; models with attention code of their own keep it."""
    model.set_attn_implementation(NAME)


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
    parts = _parts.get()
    if (
        parts is not None
        and query.shape[0] * query.shape[2] == parts.positions
        and query.shape[2] == key.shape[2]
    ):
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
    causal = (
        mask is None
        and length > 1
        and (is_causal is None or is_causal)
        and getattr(module, "is_causal", True)
    )
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
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    weights = scores.softmax(-1).to(value.dtype).view(batch, groups, -1, keys)
    return (weights @ value).view(batch, heads, length, -1).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
