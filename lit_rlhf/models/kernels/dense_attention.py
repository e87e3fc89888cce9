r"""Attention over short sequences by whole matrix products in bfloat16, its probabilities kept for backward.

Kernels that never store probabilities work in small blocks, which is what long sequences need, and on CPU they are slow
in bfloat16. The probabilities of short sequences are small, and whole products fast: heads that share keys and values
stand beside each other as the rows of one, for as many sequences and queries as have scores that stay in the cache.
Under a causal mask keys after the last query of such a part are left out. Scores and softmax are in float32, and so are
sums within products and over parts; what the other products give is rounded to the dtype of the input, gradients of
probabilities too. No double backward, no transforms of torch.func.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_rlhf.internals.torch import softmax_backward

_SCORES = 400_000
"""Scores that are computed together: some 2 MB in float32."""
_QUERIES = 64
"""Of a part under a causal mask: fewer would waste less of the triangle, and make products small."""
_MEMORY = 1.25
"""What is kept for backward, at most, in terms of what SDPA in float32 keeps."""


def pays(query: Tensor, key: Tensor, *, causal: bool) -> bool:
    """Whether to compute here: on CPU, in bfloat16, where backward keeps little more memory than SDPA's.

    Here that is the probabilities and the inputs, of SDPA in float32 copies of the inputs and its output. Values are
    taken to be as wide as keys. With 9 heads of 64 in 3 groups that is so up to 576 tokens under a causal mask, 320
    under others.
    """
    if query.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    if query.dtype != torch.bfloat16 or key.dtype != torch.bfloat16:
        return False
    probabilities = sum(part.scores(query) for part in _parts(query, key.shape[2], causal))
    ours = (probabilities + query.numel() + 2 * key.numel()) * query.itemsize
    theirs = 2 * (query.numel() + key.numel()) * torch.float32.itemsize
    return ours <= _MEMORY * theirs


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, causal: bool, scale: float
) -> Tensor:
    r"""$\mathrm{softmax}(s\,q k^\top + b)\,v$; of a query that may attend to nothing, the mean of the values.

    Args:
        query: (B, heads, Q, d); of the heads every `heads / groups` neighbours share a group.
        key: (B, groups, K, d).
        value: (B, groups, K, v).
        mask: (B or 1, heads or 1, Q, K), bool (True = attends) or added to the scores, without gradient.
        causal: Without a mask: query i attends to keys up to i; then Q = K.
        scale: $s$.

    Returns:
        (B, Q, heads, v), contiguous, in the dtype of the query.
    """
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, -torch.inf)
        # Where a query must not look the least number, not -inf: a row of that alone still has a softmax.
        mask = mask.float().clamp_min(torch.finfo(torch.float32).min).expand(len(query), -1, -1, -1)
    apply: Callable[..., Tensor] = _DenseAttention.apply
    return apply(query, key, value, mask, causal and mask is None, scale)


class _Part(NamedTuple):
    """What is computed together."""

    sequences: slice
    queries: slice
    keys: slice
    """Those that any of the queries may attend to."""

    def scores(self, query: Tensor) -> int:
        """Their number."""
        return query[self.sequences, :, self.queries, 0].numel() * int(self.keys.stop)

    def rows(self, x: Tensor, groups: int) -> Tensor:
        """(B, heads, Q, d) to (sequences * groups, heads / groups * queries, d)."""
        x = x[self.sequences, :, self.queries]
        return x.reshape(len(x) * groups, -1, x.shape[-1])

    def seen(self, x: Tensor) -> Tensor:
        """(B, groups, K, d) to (sequences * groups, keys, d): a view of what is contiguous, as gradients are."""
        return x[self.sequences, :, self.keys].flatten(0, 1)


class _DenseAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        causal: bool,
        scale: float,
    ) -> Tensor:
        (batch, heads, queries, _), groups = query.shape, key.shape[1]
        parts, kept = _parts(query, key.shape[2], causal), []
        out = query.new_empty(batch, queries, heads, value.shape[-1])
        for part in parts:
            scores = torch.bmm(
                part.rows(query, groups).float() * scale, part.seen(key).float().transpose(1, 2)
            )
            by_head = scores.view(-1, heads, part.queries.stop - part.queries.start, part.keys.stop)
            if bias is not None:
                by_head.add_(bias[part.sequences])
            elif causal:
                # the least number, where a key lies behind its query
                square = scores.new_full(2 * (by_head.shape[2],), torch.finfo(scores.dtype).min)
                by_head[..., part.queries].add_(square.triu_(1))
            probs = scores.softmax(-1).to(query.dtype)
            if any(ctx.needs_input_grad[:3]):
                kept.append(probs)
            mixed = torch.bmm(probs, part.seen(value)).view(*by_head.shape[:3], -1)
            out[part.sequences, part.queries] = mixed.transpose(1, 2)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale, ctx.parts = scale, parts
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        groups, grad = key.shape[1], grad.transpose(1, 2)
        several = len({part.queries.start for part in ctx.parts}) > 1  # see the same keys
        total = torch.float32 if several else key.dtype
        grad_query = query.new_empty(query.shape)
        grad_key = key.new_zeros(key.shape, dtype=total)
        grad_value = value.new_zeros(value.shape, dtype=total)
        for part, probs in zip(ctx.parts, kept, strict=True):
            rows, upstream = part.rows(query, groups), part.rows(grad, groups)
            part.seen(grad_value).add_(torch.bmm(probs.transpose(1, 2), upstream))
            # dL/dz = p (dL/dp - sum_j p_j dL/dp_j), within the operator in float32
            grad_probs = torch.bmm(upstream, part.seen(value).transpose(1, 2))
            grad_scores = softmax_backward(grad_probs, probs)
            part.seen(grad_key).add_(_scaled(grad_scores.transpose(1, 2), rows, ctx.scale))
            own = grad_query[part.sequences, :, part.queries]
            own.copy_(_scaled(grad_scores, part.seen(key), ctx.scale).view(own.shape))
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _parts(query: Tensor, keys: int, causal: bool) -> list[_Part]:
    batch, heads, queries, _ = query.shape
    step = _QUERIES if causal else max(queries, 1)
    found = []
    for start in range(0, queries, step):
        end = min(start + step, queries)
        seen = end if causal else keys
        size = max(_SCORES // max(heads * (end - start) * seen, 1), 1)
        own, keys_seen = slice(start, end), slice(0, seen)
        found += [_Part(slice(at, at + size), own, keys_seen) for at in range(0, batch, size)]
    return found


def _scaled(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Product of both and the scale, rounded once."""
    out = left.new_empty(len(left), left.shape[1], right.shape[2])
    return torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)
