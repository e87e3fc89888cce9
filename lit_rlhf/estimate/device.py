"""The meta device in the part of another: where its tensors seem to stand, autocast, and kernels of attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_DEVICE_OF = Tensor.device.__get__
_MOVES = frozenset((Tensor.to, Tensor.cpu, Tensor.cuda))
_FACTORIES = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.arange))
_PRODUCTS = frozenset(
    (
        F.linear,
        F.scaled_dot_product_attention,
        *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm),
        *(Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.addmm_, Tensor.__matmul__),
    )
)
"""What autocast takes to fewer bits, of what models here call."""


class Acting(TorchFunctionMode):
    """Lets tensors of the meta device act as those of a kind of device.

    On an accelerator code sees the meta device itself, which is none of the CPU's special cases. For a CPU tensors say
    that they stand there, so that code takes its kernels. Attention keeps what a flash kernel keeps, not its
    probabilities.

    Args:
        kind: "cpu" or "cuda".
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.on_cpu = kind == "cpu"

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.on_cpu:
            if func == _DEVICE_OF and args[0].is_meta:
                return torch.device("cpu")
            if func in _MOVES and args[0].is_meta:
                args = tuple(x for x in args if not isinstance(x, torch.device | str))
                kwargs = {k: v for k, v in kwargs.items() if k != "device"}
        if func in _FACTORIES and kwargs.get("device") is not None:
            # Floats stand where the model does; other arrays steer the code and are real.
            dtype: torch.dtype | None = kwargs.get("dtype")
            floats = func is not torch.arange or any(isinstance(x, float) for x in args)
            floats = floats if dtype is None else dtype.is_floating_point
            kwargs["device"] = "meta" if floats else "cpu"
        if func in _PRODUCTS and torch.is_autocast_enabled("cpu"):
            low = torch.get_autocast_dtype("cpu")
            wide = [isinstance(x, Tensor) and x.is_meta and x.dtype == torch.float32 for x in args]
            args = tuple(x.to(low) if w else x for x, w in zip(args, wide, strict=True))
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def acting(kind: str, autocast: torch.dtype | None) -> Iterator[None]:
    """Let tensors of the meta device act as those of a kind of device, under autocast where a dtype is given."""
    with (
        torch.autocast("cpu", autocast, enabled=autocast is not None, cache_enabled=False),
        Acting(kind),
    ):
        yield


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = attn_mask.to(query.dtype)
    out: Tensor = _Flash.apply(query, key, value, attn_mask)
    return out


class _Flash(torch.autograd.Function):
    """Keeps its inputs, its output and a number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        normalizer = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, normalizer, mask)
        return out

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return *(torch.empty_like(x) for x in (query, key, value)), None
