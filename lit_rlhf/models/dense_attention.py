r"""Attention over short sequences by whole matrix products in bfloat16, its probabilities kept for backward.

Kernels that never store probabilities work in small blocks, which is what long sequences need, and on CPU they are slow in
bfloat16. The probabilities of short sequences are small, and whole products fast: heads that share keys and values stand beside
each other as the rows of one, a few sequences at a time, so that their scores stay in the cache. Scores and softmax are in
float32, and so are sums within products; what the other products give is rounded to the dtype of the input, gradients of
probabilities too. No double backward, no transforms of torch.func.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SCORES = 400_000
"""Scores that are computed together: some 2 MB in float32."""


def pays(query: Tensor, key: Tensor) -> bool:
    """Whether to compute here: on CPU, in bfloat16, where what is kept for backward takes no more memory than what SDPA keeps.

    Here that is the probabilities and the inputs, of SDPA in float32 copies of the inputs and its output. Values are taken to
    be as wide as keys.
    """
    if query.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    if query.dtype != torch.bfloat16 or key.dtype != torch.bfloat16:
        return False
    probabilities = query[..., 0].numel() * key.shape[2]
    ours = (probabilities + query.numel() + 2 * key.numel()) * query.itemsize
    return ours <= 2 * (query.numel() + key.numel()) * torch.float32.itemsize


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, causal: bool, scale: float
) -> Tensor:
    r"""$\mathrm{softmax}(s\,q k^\top + b)\,v$; of a query that may attend to nothing, the mean of the values.

    Args:
        query: (B, heads, Q, d); of the heads every `heads / groups` neighbours share a group.
        key: (B, groups, K, d).
        value: (B, groups, K, v).
        mask: (B or 1, heads or 1, Q, K), bool (True = attends) or added to the scores.
        causal: Without a mask: query i attends to keys up to i; then Q = K.
        scale: $s$.

    Returns:
        (B, Q, heads, v), contiguous, in the dtype of the query.
    """
    out: Tensor = _DenseAttention.apply(query, key, value, mask, causal, scale)  # type: ignore[no-untyped-call]
    return out


class _DenseAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        (batch, heads, queries, _), (groups, keys) = query.shape, key.shape[1:3]
        bias = _bias(mask, causal, query, keys)
        probs = query.new_empty(batch, groups, heads // groups * queries, keys)
        out = query.new_empty(batch, queries, heads, value.shape[-1])
        for part in _parts(probs):
            q, k, v = (_rows(x[part], groups) for x in (query, key, value))
            scores = torch.bmm(q.float() * scale, k.float().transpose(1, 2))
            if bias is not None:
                scores.view(-1, heads, queries, keys).add_(bias[part])
            own = probs[part].flatten(0, 1)
            own.copy_(scores.softmax(-1))
            out[part] = torch.bmm(own, v).view(-1, heads, queries, out.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, probs)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, probs = ctx.saved_tensors
        grads = [x.new_empty(x.shape) for x in (query, key, value)]
        for part in _parts(probs):
            q, k, v = (_rows(x[part], key.shape[1]) for x in (query, key, value))
            grad_q, grad_k, grad_v = (_rows(x[part], key.shape[1]) for x in grads)
            own, upstream = probs[part].flatten(0, 1), _rows(grad[part].transpose(1, 2), key.shape[1])
            torch.bmm(own.transpose(1, 2), upstream, out=grad_v)
            wide = torch.bmm(upstream, v.transpose(1, 2)).float()
            # dL/dz = p (dL/dp - sum_j p_j dL/dp_j)
            wide = torch._softmax_backward_data(wide, own.float(), -1, wide.dtype)  # noqa: SLF001
            scores = wide.mul_(ctx.scale).to(q.dtype)
            torch.bmm(scores, k, out=grad_q)
            torch.bmm(scores.transpose(1, 2), q, out=grad_k)
        return *grads, None, None, None


def _parts(probs: Tensor) -> Iterator[slice]:
    """Sequences that are computed together."""
    size = max(_SCORES // max(probs.shape[1:].numel(), 1), 1)
    return (slice(start, start + size) for start in range(0, len(probs), size))


def _rows(x: Tensor, groups: int) -> Tensor:
    """(B, heads, n, d) to (B * groups, heads / groups * n, d): a view where the memory allows."""
    return x.reshape(len(x) * groups, -1, x.shape[-1])


def _bias(mask: Tensor | None, causal: bool, query: Tensor, keys: int) -> Tensor | None:
    """(B, heads or 1, Q, K) to add to the scores.

    Where a query must not look it is the least number, not -inf: a row of that alone still has a softmax.
    """
    if mask is None and not causal:
        return None
    if mask is None:
        mask = torch.ones(1, 1, keys, keys, dtype=torch.bool, device=query.device).tril()
    if mask.dtype == torch.bool:
        mask = query.new_zeros(mask.shape, dtype=torch.float32).masked_fill_(~mask, -torch.inf)
    return mask.float().clamp_min(torch.finfo(torch.float32).min).expand(len(query), -1, -1, -1)
