"""Log-probs and entropies of tokens, from logits or straight from hidden states without storing logits."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.logits import FUSED_FROM, Fused, fused, raw_gradient, row_statistics
from lit_rlhf.functional.numerics import LEAST_LOGPROB, LogitShape, at_least_float32
from lit_rlhf.functional.shapes import Logits, Numbers

LogitFunction = Callable[[Tensor], Tensor]
"""Hidden states (n, h) to logits (n, vocabulary)."""

# Logits of one chunk. On a CPU they should stay in the cache between the passes over them; a GPU wants large products.
_CHUNK_ELEMENTS_CPU = 1 << 22
_CHUNK_ELEMENTS_ACCELERATOR = 1 << 26
_CHUNK_ELEMENTS_FUSED = 1 << 27


class TokenLogprobs(NamedTuple):
    """What `chunked_logprobs` returns."""

    logprobs: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"] | None


def token_logprobs(
    logits: Logits, tokens: Int[Tensor, "*shape"], temperature: float = 1.0
) -> Numbers:
    """Log-probs of tokens under softmax(logits / temperature), in nats and at least float32.

    Args:
        logits: (..., V).
        tokens: (...), in [0, V).
        temperature: Above 0. That of sampling, if the log-probs are to be those of the distribution sampled from.

    Example:
        >>> token_logprobs(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).exp()
        tensor([0.5000])
    """
    scaled = _tempered(logits, temperature)
    return scaled.gather(-1, tokens[..., None]).squeeze(-1) - scaled.logsumexp(-1)


def token_entropy(logits: Logits, temperature: float = 1.0) -> Numbers:
    r"""Entropy $-\sum_v p_v \ln p_v$ of softmax(logits / temperature), in nats; logits of -inf add nothing.

    Example:
        >>> token_entropy(torch.tensor([0.0, 0.0, -float("inf")])).exp()
        tensor(2.)
    """
    logprobs = _tempered(logits, temperature).log_softmax(-1)
    return -(logprobs.exp() * logprobs.clamp_min(LEAST_LOGPROB)).sum(-1)


def chunked_logprobs(
    hidden: Float[Tensor, "tokens width"],
    head: Float[Tensor, "vocabulary width"] | LogitFunction,
    tokens: Int[Tensor, " tokens"],
    *,
    bias: Float[Tensor, " vocabulary"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    with_entropy: bool = False,
    entropy_grad: bool = False,
    chunk_size: int | None = None,
    fuse: bool | None = None,
) -> TokenLogprobs:
    r"""Log-probs of tokens from hidden states, a chunk of tokens at a time: the logits of a batch never exist.

    With raw logits $a = hW^\top + b$, scale $s$ and cap $c$, the logits are $z = c\tanh(sa/c)/\tau$ (or $z = sa/\tau$).
    Products are in the dtype of the weights, softmax and results in float32 (float64 for float64 weights).

    A weight gets the fast path: with a frozen one, $\partial \log p/\partial h$ is formed in the forward pass and kept
    (the size of `hidden`), so that the backward pass is one product less and touches no logits; a trained one, or a
    differentiable entropy, has its logits recomputed chunk by chunk. No gradient is computed for a frozen weight.
    A callable is run under activation checkpointing, once per chunk in either pass; with sharded parameters gather
    them before, since ranks differ in the number of chunks.

    Args:
        hidden: (n, h) states that predict the tokens: only those that are needed.
        head: The weight (V, h) of the LM head, or a function from (m, h) to logits (m, V).
        tokens: (n,).
        bias: (V,), with a weight.
        temperature: Above 0; divides the logits.
        softcap: Above 0; bounds the logits to (-softcap, softcap) before the temperature. None: no bound.
        logit_scale: Multiplies the raw logits, before the cap.
        with_entropy: Return the entropy too, detached unless `entropy_grad`.
        entropy_grad: Whether the entropy carries a gradient, for an entropy bonus; costs recomputation.
        chunk_size: Tokens in a chunk; bounds memory to a few times chunk_size * V numbers. Default: by the device.
        fuse: With a weight, compile what is computed of its products, some seconds at the first call; where that can't
            be done a warning says so. Results differ by rounding. Default: on a GPU, where there are 2^24 logits.

    Returns:
        Log-probs (n,) in nats, and the entropy (n,) or None.

    Raises:
        ConfigurationError: An option is out of range, or a bias comes with a callable.

    Example:
        >>> hidden, weight = torch.randn(5, 4), torch.randn(9, 4)
        >>> tokens = torch.arange(5)
        >>> out = chunked_logprobs(hidden, weight, tokens, chunk_size=2)
        >>> torch.allclose(out.logprobs, token_logprobs(hidden @ weight.T, tokens), atol=1e-5)
        True
    """
    _refuse_bad_options(temperature, softcap, chunk_size, bias, head)
    shape = LogitShape(temperature, softcap, logit_scale)
    if not isinstance(head, Tensor):
        plan = _Plan(shape, chunk_size or 1024, with_entropy, entropy_grad)
        return _checkpointed(hidden, head, tokens, plan)
    dtype = head.dtype if head.is_meta else product_dtype(head)
    hidden, weight = hidden.to(dtype), head.to(dtype)
    bias = None if bias is None else bias.to(weight.dtype)
    trains_head = weight.requires_grad or (bias is not None and bias.requires_grad)
    if fuse is None:
        fuse = hidden.is_cuda and len(tokens) * len(weight) >= FUSED_FROM
    fuse = fuse and Fused.works
    if chunk_size is None:
        on_cpu = weight.device.type == "cpu"
        budget = _CHUNK_ELEMENTS_CPU if on_cpu else _CHUNK_ELEMENTS_ACCELERATOR
        budget = _CHUNK_ELEMENTS_FUSED if fuse else budget
        # Each chunk adds to the whole gradient of a trained head: fewer, larger ones.
        budget *= 4 if trains_head and torch.is_grad_enabled() else 1
        chunk_size = max(budget // len(weight), 16)
    plan = _Plan(shape, chunk_size, with_entropy, entropy_grad, fuse)
    hidden_alone = hidden.requires_grad and not trains_head and not entropy_grad
    keep_slopes = torch.is_grad_enabled() and hidden_alone
    # The dtypes are settled now. The meta device, which checks shapes and devices, knows no autocast.
    kind = hidden.device.type
    with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
        apply: Callable[..., tuple[Tensor, Tensor | None]] = _ChunkedLogprobs.apply
        logprobs, entropy = apply(hidden, weight, bias, tokens, plan, keep_slopes)
    if entropy is not None and not entropy_grad:
        entropy = entropy.detach()
    return TokenLogprobs(logprobs, entropy)


class _Plan(NamedTuple):
    """How logits come from raw products, how much at a time, and what is wanted of them."""

    shape: LogitShape
    chunk_size: int
    with_entropy: bool
    entropy_grad: bool
    fuse: bool = False

    def chunks(self, count: int) -> list[slice]:
        return [slice(start, start + self.chunk_size) for start in range(0, count, self.chunk_size)]


class _ChunkedLogprobs(Function):
    """The path for a weight; the gradient is written out by hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        plan: _Plan,
        keep_slopes: bool,
    ) -> tuple[Tensor, Tensor | None]:
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        logprobs = torch.empty(tokens.shape, dtype=dtype, device=hidden.device)
        normalizer = torch.empty_like(logprobs)
        entropy = torch.empty_like(logprobs) if plan.with_entropy else None
        slopes = torch.empty_like(hidden) if keep_slopes else None
        for chunk in plan.chunks(len(tokens)):
            raw = linear(hidden[chunk], weight, bias)
            found = _of_chunk(raw, tokens[chunk], plan, keep_slopes)
            logprobs[chunk], normalizer[chunk] = found.logprobs, found.normalizer
            if entropy is not None:
                entropy[chunk] = found.entropy
            if slopes is not None:
                slopes[chunk] = found.slope @ weight
        ctx.plan, ctx.keeps_slopes = plan, keep_slopes
        if keep_slopes:
            ctx.save_for_backward(slopes)
        else:
            ctx.save_for_backward(hidden, weight, bias, tokens, normalizer, entropy)
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if ctx.keeps_slopes:
            (slopes,) = ctx.saved_tensors
            if grad_logprobs is None:
                return (None,) * 6
            return (slopes * grad_logprobs[:, None]).to(slopes.dtype), *(None,) * 5
        if grad_logprobs is None and grad_entropy is None:
            return (None,) * 6
        return *_recomputed_gradients(ctx, grad_logprobs, grad_entropy), None, None, None


class _Chunk(NamedTuple):
    """Of the tokens of a chunk; `slope` (m, V) is the gradient of their log-probs by the raw products."""

    logprobs: Tensor
    normalizer: Tensor
    entropy: Any = None
    slope: Any = None


def _of_chunk(raw: Tensor, tokens: Tensor, plan: _Plan, with_slope: bool) -> _Chunk:
    """In place where it isn't fused: on a CPU a new array of a chunk's size costs as much as a pass over one."""
    shape, picks, entropy = plan.shape, tokens[:, None], None
    if plan.fuse:
        logprobs, normalizer, entropy = fused(row_statistics)(raw, tokens, shape)
        slope = fused(raw_gradient)(raw, tokens, normalizer, shape) if with_slope else None
        return _Chunk(logprobs, normalizer, entropy, slope)
    logits = shape.logits(raw)
    logprobs = logits.gather(-1, picks).squeeze(-1)
    peak = logits.amax(-1, keepdim=True)
    below = logits.sub_(peak)
    read_again = plan.with_entropy or (with_slope and shape.softcap is not None)
    probs = below.exp() if read_again else below.exp_()
    total = probs.sum(-1, keepdim=True)
    normalizer = (peak + total.log()).squeeze(-1)
    if plan.with_entropy or with_slope:
        probs = probs.div_(total)
    if plan.with_entropy:
        below.clamp_min_(LEAST_LOGPROB)
        # The sum of products of each row, without an array of the products.
        dots = torch.bmm(probs[:, None, :], below[:, :, None]).flatten()
        entropy = total.log().squeeze(-1) - dots
    if not with_slope:
        return _Chunk(logprobs - normalizer, normalizer, entropy)
    slope = probs.neg_().scatter_add_(-1, picks, torch.ones_like(picks, dtype=probs.dtype))
    if shape.softcap is not None:
        logits = below.add_(peak)
    slope = shape.scale_gradient(slope, logits).to(raw.dtype)
    return _Chunk(logprobs - normalizer, normalizer, entropy, slope)


def _raw_gradient(
    raw: Tensor,
    tokens: Tensor,
    normalizer: Tensor,
    shape: LogitShape,
    upstream: Tensor,
    entropy: Tensor | None = None,
    grad_entropy: Tensor | None = None,
) -> Tensor:
    """`raw_gradient` in place where that can be, as `_of_chunk`."""
    logits = shape.logits(raw)
    log_probs = logits - normalizer[:, None]
    probs = log_probs.exp()
    gradient = (probs * -upstream[:, None]).scatter_add_(-1, tokens[:, None], upstream[:, None])
    if entropy is not None and grad_entropy is not None:
        slope = probs.mul_(log_probs.clamp_min_(LEAST_LOGPROB).add_(entropy[:, None]))
        gradient.addcmul_(slope, grad_entropy[:, None], value=-1)
    return shape.scale_gradient(gradient, logits).to(raw.dtype)


def _recomputed_gradients(
    ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    hidden, weight, bias, tokens, normalizer, entropy = ctx.saved_tensors
    plan: _Plan = ctx.plan
    gradient_of = fused(raw_gradient) if plan.fuse else _raw_gradient
    if grad_logprobs is None:
        grad_logprobs = torch.zeros_like(normalizer)
    of_hidden, of_weight, of_bias, *_ = ctx.needs_input_grad
    grad_hidden = torch.empty_like(hidden) if of_hidden else None
    # Chunks are summed in float32: bfloat16 would lose the small ones.
    grad_weight = torch.zeros_like(weight, dtype=normalizer.dtype) if of_weight else None
    grad_bias = torch.zeros_like(bias, dtype=normalizer.dtype) if of_bias else None
    for chunk in plan.chunks(len(tokens)):
        raw = linear(hidden[chunk], weight, bias)
        upstream = [grad_logprobs[chunk]]
        if grad_entropy is not None:
            upstream += [entropy[chunk], grad_entropy[chunk]]
        gradient = gradient_of(raw, tokens[chunk], normalizer[chunk], plan.shape, *upstream)
        if grad_bias is not None:
            grad_bias += gradient.sum(0, dtype=grad_bias.dtype)
        if grad_hidden is not None:
            grad_hidden[chunk] = gradient @ weight
        if grad_weight is not None:
            grad_weight += gradient.T @ hidden[chunk]
    return (
        grad_hidden,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None else grad_bias.to(weight.dtype),
    )


def _checkpointed(
    hidden: Tensor, head: LogitFunction, tokens: Tensor, plan: _Plan
) -> TokenLogprobs:
    def run(states: Tensor, picks: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = plan.shape.logits(head(states))
        entropy = None
        if plan.with_entropy:
            entropy = token_entropy(logits if plan.entropy_grad else logits.detach())
        return token_logprobs(logits, picks), entropy

    # An empty batch still goes through the head once, so that its parameters get their (zero) gradients.
    chunks = plan.chunks(len(tokens)) or [slice(0, 0)]
    again = partial(checkpoint, run, use_reentrant=False) if torch.is_grad_enabled() else run
    logprobs, entropies = zip(*(again(hidden[c], tokens[c]) for c in chunks), strict=True)
    return TokenLogprobs(torch.cat(logprobs), torch.cat(entropies) if plan.with_entropy else None)


def product_dtype(weight: Tensor) -> torch.dtype:
    """What a linear layer computes in: autocast's dtype where that is on, else the weight's."""
    kind = "cpu" if weight.is_meta else weight.device.type  # where an estimate autocasts
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    logits = at_least_float32(logits)
    return logits if temperature == 1.0 else logits / temperature


def _refuse_bad_options(
    temperature: float,
    softcap: float | None,
    chunk_size: int | None,
    bias: Tensor | None,
    head: Tensor | LogitFunction,
) -> None:
    if not temperature > 0:
        raise ConfigurationError(
            f"temperature={temperature} must be above 0: log-probs of greedy sampling are all 0."
        )
    if softcap is not None and not softcap > 0:
        raise ConfigurationError(
            f"softcap={softcap} must be above 0; None leaves logits unbounded."
        )
    if chunk_size is not None and chunk_size < 1:
        raise ConfigurationError(
            f"chunk_size={chunk_size} must be 1 or more; None chooses it by the device."
        )
    if bias is not None and not isinstance(head, Tensor):
        raise ConfigurationError(
            "bias belongs to a head given as a weight; a callable adds its own."
        )
