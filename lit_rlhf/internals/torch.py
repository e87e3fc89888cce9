"""Of torch, read from 2.13: a module's hooks, tensors' versions, unsaved buffers, oneDNN's operators, groups."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_altered(module: nn.Module) -> bool:
    """Whether calling a module does more than its class says: it is hooked, or its forward is patched."""
    return any(getattr(module, name) for name in _HOOKS) or "forward" in vars(module)


def version_of(tensor: Tensor) -> int:
    """A number that every write in place moves, an optimizer's step too; writes through `.data` don't."""
    return tensor._version  # noqa: SLF001


def state_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's own parameters and buffers, without the buffers that its state leaves out."""
    left_out = module._non_persistent_buffers_set  # noqa: SLF001
    buffers = [item for item in module.named_buffers(recurse=False) if item[0] not in left_out]
    return [*module.named_parameters(recurse=False), *buffers]


def softmax_backward(grad: Tensor, probs: Tensor) -> Tensor:
    r"""$p \odot (g - \sum_j p_j g_j)$ over the last dimension, in float32 up to the rounding of the result."""
    return torch._softmax_backward_data(grad, probs, -1, probs.dtype)  # noqa: SLF001


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions that oneDNN multiplies bfloat16 with; without, it is emulated."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def laid_out_linear(weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor]:
    """A linear layer on CPU with a copy of its weights that lies as oneDNN's kernels read them.

    These are the operators of torch's compiler; a torch without them, float32 and CPUs that don't multiply bfloat16
    get plain products.

    Args:
        weight: (out, in).
        bias: (out,).
        rows: Rows of inputs that the layout is made for; it serves any number.
    """
    ops: Any = torch.ops.mkldnn
    lay_out = getattr(ops, "_reorder_linear_weight", None)
    multiply = getattr(ops, "_linear_pointwise", None)
    fits = weight.dtype == torch.bfloat16 and multiplies_bfloat16()
    if not fits or lay_out is None or multiply is None:
        return partial(F.linear, weight=weight, bias=bias)
    laid_out = lay_out(weight, rows)
    return lambda x: multiply(x, laid_out, bias, "none", [], "")


def collectives_begun() -> int:
    """How many this process has begun, of all groups; of ranks that run the same program, one behind has fewer."""
    groups: Any = dist.distributed_c10d._world.pg_map  # noqa: SLF001
    return sum(group._get_sequence_number_for_group() for group in groups)  # noqa: SLF001


def own_store() -> Any:
    """The store by which the processes found each other, on a connection of its own, for use by another thread."""
    store: Any = dist.distributed_c10d._get_default_store()  # noqa: SLF001
    return store.clone()
