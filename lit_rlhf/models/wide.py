"""Linear layers that keep weights in half precision and multiply in float32, where the CPU is faster so.

On CPUs without matrix units a product in bfloat16 takes nearly twice as long as one in float32, though half the bytes
move. So weights and activations are cast as they are used, and the result is cast back: the layer is what it was, but for
sums that round otherwise. On other devices, in other dtypes and under autocast torch's own function is called.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F

from lit_rlhf.functional.numerics import multiplies_in_float32


class LowRank(NamedTuple):
    """What an adapter adds to a layer: scale * up @ down @ x."""

    down: Tensor  # (r, in) float32
    up: Tensor  # (out, r) float32
    scale: float


class WideLinear(nn.Linear):
    """A linear layer that may multiply in float32."""

    keeps: "dict[str | None, Tensor] | None" = None  # float32 weights by the adapter merged into them

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the dtype of x."""
        if widens(self, x):
            return wide_linear(self, x, None, None)
        return super().forward(x)

    def kept(self, name: str | None, adapter: LowRank | None) -> Tensor | None:
        """The float32 weight with an adapter merged in, while `keeping_wide` holds; else None."""
        if self.keeps is None:
            return None
        if name not in self.keeps:
            wide = self.weight.detach().float()
            if adapter is not None:
                wide.addmm_(adapter.up.detach().float(), adapter.down.detach().float(), alpha=adapter.scale)
            self.keeps[name] = wide
        return self.keeps[name]


def use_wide_linear(model: nn.Module) -> None:
    """Let the linear layers of a model multiply in float32 where that is faster; parameters and names stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = WideLinear


def widens(module: nn.Module, x: Tensor) -> TypeGuard[WideLinear]:
    """Whether a layer multiplies in float32 for this input."""
    return (
        isinstance(module, WideLinear)
        and multiplies_in_float32(module.weight)
        and x.dtype == module.weight.dtype
        and not torch.is_autocast_enabled("cpu")
    )


def wide_linear(
    layer: WideLinear, x: Tensor, name: str | None, adapter: LowRank | None, dtype: torch.dtype | None = None
) -> Tensor:
    """A layer with an adapter, in float32, rounded once at the end.

    Args:
        layer: The layer.
        x: (..., in) in half precision.
        name: Of the adapter.
        adapter: Its matrices, or None.
        dtype: Of the result; default: that of x.
    """
    kept = None if torch.is_grad_enabled() else layer.kept(name, adapter)
    if kept is not None:
        bias = None if layer.bias is None else layer.bias.float()  # type: ignore[redundant-expr]
        return F.linear(x.float(), kept, bias).to(dtype or x.dtype)
    down, up, scale = (None, None, 0.0) if adapter is None else adapter
    out: Tensor = _WideLinear.apply(x, layer.weight, layer.bias, down, up, scale, dtype or x.dtype)  # type: ignore[no-untyped-call]
    return out


@contextmanager
def keeping_wide(model: nn.Module) -> Iterator[None]:
    """Keep the float32 weights, with the active adapter merged in, for the time of a `with` in which none changes.

    For many passes over few rows, as in decoding, where casting a weight takes about as long as multiplying with it. Takes
    4 bytes a weight, and nothing where layers don't multiply in float32.
    """
    layers = [module for module in model.modules() if isinstance(module, WideLinear)]
    for layer in layers:
        layer.keeps = {}
    try:
        yield
    finally:
        for layer in layers:
            layer.keeps = None


class _WideLinear(Function):
    """Keeps the input in half precision for backward, and of the weight no copy."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor | None,
        up: Tensor | None,
        scale: float,
        dtype: torch.dtype,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        wide = rows.float()
        out = F.linear(wide, weight.float(), None if bias is None else bias.float())
        hidden = None
        if down is not None and up is not None:
            hidden = wide @ down.t()
            out.addmm_(hidden, up.t(), alpha=scale)
        needs_x = weight.requires_grad or (down is not None and down.requires_grad)
        ctx.save_for_backward(rows if needs_x else None, weight, down, up, hidden)
        ctx.scale, ctx.x_shape, ctx.x_dtype = scale, x.shape, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return out.to(dtype).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, down, up, hidden = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_down, needs_up, *_ = ctx.needs_input_grad
        wide = grad.reshape(-1, grad.shape[-1]).float()
        grad_x = wide @ weight.float() if needs_x else None
        grad_down = grad_up = None
        if down is not None:
            inner = wide @ up
            if grad_x is not None:
                grad_x.addmm_(inner, down, alpha=ctx.scale)
            if needs_down:
                grad_down = (inner.t() @ x.float()).mul_(ctx.scale)
            if needs_up:
                grad_up = (wide.t() @ hidden).mul_(ctx.scale)
        return (
            None if grad_x is None else grad_x.to(ctx.x_dtype).view(ctx.x_shape),
            (wide.t() @ x.float()).to(weight.dtype) if needs_weight else None,
            wide.sum(0).to(ctx.bias_dtype) if needs_bias else None,
            grad_down,
            grad_up,
            None,
            None,
        )
