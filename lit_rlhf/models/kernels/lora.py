"""LoRA layers that compute in the base's dtype and add in place, for peft's layers to be switched to.

peft's forward casts the input to the adapter's float32, multiplies there and casts back: on a bfloat16 base that is a
float32 copy of every input kept for backward and several passes over every output. Here the small matrices are cast
instead and the low-rank product is accumulated by the matrix product itself. Weights stay float32, and so do gradients.

On a base in float the layer has a backward of its own too, in which the two gradients of the input are accumulated in
the same way; autograd's copies each gradient first and adds them afterwards. No double backward, no transforms of
torch.func.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from peft.tuners import lora
from peft.tuners.lora import bnb as lora_bnb
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lit_rlhf.internals.bitsandbytes import float_weight
from lit_rlhf.internals.peft import active_of
from lit_rlhf.internals.torch import is_altered, version_of

if TYPE_CHECKING:
    _Layer = nn.Module
else:
    _Layer = object


def adapted_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    r"""$x W^\top + b + s\,(x A^\top) B^\top$, in the dtype of x and W; the gradients of A and B are in theirs.

    Args:
        x: (..., in).
        weight: W, (out, in).
        bias: b, (out,).
        down: A, (r, in).
        up: B, (out, r).
        scale: s.
    """
    # Shapes change outside: a view made inside of a Function may not be modified in place.
    apply: Callable[..., Tensor] = _AdaptedLinear.apply
    out = apply(x.reshape(-1, x.shape[-1]), weight, bias, down, up, scale)
    return out.view(*x.shape[:-1], len(weight))


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        flat: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        small_down, small_up = down.to(flat.dtype), up.to(flat.dtype)
        hidden = F.linear(flat, small_down)
        out = F.linear(flat, weight, bias).addmm_(hidden, small_up.t(), alpha=scale)
        ctx.save_for_backward(flat, hidden, weight, small_down, small_up)
        ctx.scale, ctx.dtypes = scale, (down.dtype, up.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, hidden, weight, down, up = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, wants_down, wants_up, _ = ctx.needs_input_grad
        grad_x = grad_down = None
        if wants_x or wants_down:
            grad_hidden = (grad @ up).mul_(ctx.scale)
            grad_x = (grad @ weight).addmm_(grad_hidden, down) if wants_x else None
            grad_down = (grad_hidden.t() @ flat).to(ctx.dtypes[0]) if wants_down else None
        return (
            grad_x,
            grad.t() @ flat if wants_weight else None,
            grad.sum(0) if wants_bias else None,
            grad_down,
            # As a product of few rows it is faster than as one of few columns.
            (hidden.t() @ grad).mul_(ctx.scale).t().to(ctx.dtypes[1]) if wants_up else None,
            None,
        )


class RoleLayer(_Layer):
    """The forward of one adapted linear layer: the base alone, or with the adapter of the active role."""

    base_layer: nn.Module
    lora_A: nn.ModuleDict  # noqa: N815 - peft's name
    lora_B: nn.ModuleDict  # noqa: N815
    lora_dropout: nn.ModuleDict
    scaling: dict[str, float]
    in_place = True
    casts: dict[str, tuple[Tensor, Tensor, tuple[int, int]]]
    """Of inference, kept while a role is on."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        result: Tensor = self.base_layer(x)
        name = self.active
        if name is None:
            return result
        down, up = self._in_dtype(name, result.dtype)
        hidden = F.linear(self.lora_dropout[name](x).to(result.dtype), down).view(-1, down.shape[0])
        flat = result.view(-1, up.shape[1])
        if self.in_place:
            flat.addmm_(hidden, up, alpha=self.scaling[name])
        else:
            flat = torch.addmm(flat, hidden, up, alpha=self.scaling[name])
        return flat.view(result.shape)

    @property
    def active(self) -> str | None:
        """The adapter that is on; None where the active role has none, or one that leaves this layer out."""
        return active_of(self)

    def matrices(self, name: str) -> tuple[Tensor, Tensor]:
        """A, (r, in), and B, (out, r), of an adapter."""
        down: Any = self.lora_A[name]
        up: Any = self.lora_B[name]
        return down.weight, up.weight

    def _in_dtype(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        down, up = self.matrices(name)
        if torch.is_grad_enabled() or down.dtype == dtype:
            return down.to(dtype), up.to(dtype).t()
        versions = version_of(down), version_of(up)  # an optimizer's step moves them
        kept = self.casts.get(name)
        if kept is None or kept[2] != versions:
            kept = self.casts[name] = (down.to(dtype), up.to(dtype).t(), versions)
        return kept[0], kept[1]


class RoleLinear(RoleLayer, lora.Linear):
    """On a linear layer in float."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        name = self.active
        if name is None or not self._is_plain(x, name):
            return super().forward(x)
        base: Any = self.base_layer
        return adapted_linear(x, base.weight, base.bias, *self.matrices(name), self.scaling[name])

    def _is_plain(self, x: Tensor, name: str) -> bool:
        """Whether a backward is wanted, and nothing but the formula is computed here."""
        base, dropout = self.base_layer, self.lora_dropout[name]
        return (
            torch.is_grad_enabled()
            and x.dtype == base.weight.dtype
            and is_float_linear(base)
            and not is_altered(base)
            and (isinstance(dropout, nn.Identity) or not dropout.training)
            and (x.is_meta or not torch.is_autocast_enabled(x.device.type))
        )


class RoleLinear4bit(RoleLayer, lora_bnb.Linear4bit):
    """On a bitsandbytes layer of 4 bits."""

    in_place = False  # its output is a view made inside an autograd function


class RoleLinear8bit(RoleLayer, lora_bnb.Linear8bitLt):
    """On a bitsandbytes layer of 8 bits."""

    in_place = False


_LAYERS: dict[type, type[RoleLayer]] = {
    lora.Linear: RoleLinear,
    lora_bnb.Linear4bit: RoleLinear4bit,
    lora_bnb.Linear8bitLt: RoleLinear8bit,
}


class LinearParts(NamedTuple):
    r"""A linear layer with the active role: $x W^\top + b + (x A^\top) B^\top$, the adapter's scale in B."""

    weight: Tensor
    """W, (out, in)."""
    bias: Tensor | None
    """b, (out,)."""
    down: Tensor | None
    """A, (r, in); None without an adapter."""
    up: Tensor | None
    """B, (out, r)."""


def is_float_linear(layer: nn.Module | None) -> bool:
    """Whether it is a linear layer in float, with or without an adapter."""
    base = layer.base_layer if isinstance(layer, RoleLayer) else layer
    return type(base) is nn.Linear and base.weight.is_floating_point()


def has_linear_parts(layer: nn.Module | None, *, quantized: bool) -> bool:
    """Whether `linear_parts` takes it: a linear layer in float or, if asked for, a quantized one."""
    base = layer.base_layer if isinstance(layer, RoleLayer) else layer
    return is_float_linear(base) or (quantized and isinstance(base, Linear4bit | Linear8bitLt))


def linear_parts(layer: nn.Module, dtype: torch.dtype) -> LinearParts:
    """Take a linear layer to its parts, in a dtype; a quantized one is dequantized."""
    base: Any = layer.base_layer if isinstance(layer, RoleLayer) else layer
    weight = float_weight(base, dtype).to(dtype)
    bias = None if base.bias is None else base.bias.data.to(dtype)
    if not isinstance(layer, RoleLayer) or layer.active is None:
        return LinearParts(weight, bias, None, None)
    down, up = layer.matrices(layer.active)
    return LinearParts(weight, bias, down.to(dtype), (up * layer.scaling[layer.active]).to(dtype))


def adopt(layer: Any) -> None:
    """Give a layer that peft injected the forward above; it stays an instance of peft's class. Others keep theirs."""
    ours = _LAYERS.get(type(layer))
    if ours is not None:
        layer.__class__ = ours
        layer.casts = {}
