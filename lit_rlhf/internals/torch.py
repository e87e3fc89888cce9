"""Of torch, read from 2.13: hooks, versions and storages of tensors, operators, oneDNN, flash kernels, groups, NCCL."""

import platform
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.cuda import nccl
from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_RESHAPING = ("resize", "set", "squeeze", "unsqueeze", "t", "transpose", "resize_as")
_SHAPE_CHANGING = {f"aten::{name}_" for name in _RESHAPING}
_WITHOUT_WORK = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::lift")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_altered(module: nn.Module) -> bool:
    """Whether calling a module does more than its class says: it is hooked, or its forward is patched.

    FSDP2's own hooks don't count, by which a layer's parameters are gathered: it computes what it would without.
    """
    hooks = [hook for name in _HOOKS for hook in getattr(module, name).values()]
    of_fsdp = [isinstance(getattr(hook, "__self__", None), FSDPState) for hook in hooks]
    return not all(of_fsdp) or "forward" in vars(module)


class OperatorMode(TorchDispatchMode):
    """Sees every operator that runs while it is on, in `__torch_dispatch__`, which a subclass writes."""

    def __init__(self) -> None:
        super().__init__()


def tensors_in(*nested: Any) -> list[Tensor]:
    """The tensors in tuples, lists and dictionaries, as operators are given them."""
    found: list[Tensor] = []
    for item in nested:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, tuple | list):
            found += tensors_in(*item)
        elif isinstance(item, dict):
            found += tensors_in(*item.values())
    return found


def map_tensors(change: Callable[[Tensor], Tensor], nested: Any) -> Any:
    """Nested tuples, lists and dictionaries with each tensor changed."""
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, nested)


def described(nested: Any) -> Any:
    """Arguments of an operator to tell calls apart by: of tensors what they look like."""
    if isinstance(nested, Tensor):
        return nested.shape, nested.stride(), nested.dtype
    if isinstance(nested, tuple | list):
        return tuple(map(described, nested))
    return type(nested), nested  # 1 and 1.0 and True are equal


@cache
def makes_new(operator: Any) -> bool:
    """Whether an operator's results are arrays of their own and nothing is written."""
    schema = operator._schema
    return not schema.is_mutable and all(each.alias_info is None for each in schema.returns)


@cache
def computes(operator: Any) -> bool:
    """Whether an operator is work for a device: views and arrays without contents are none."""
    made = makes_new(operator) and not operator.name().startswith(_WITHOUT_WORK)
    return made or bool(operator._schema.is_mutable)


@cache
def writes_first(operator: Any) -> bool:
    """Whether an operator's result is its first argument, written in place."""
    schema = operator._schema
    named = schema.name.endswith("_") and schema.name not in _SHAPE_CHANGING
    if not (schema.is_mutable and named and len(schema.returns) == 1 and schema.arguments):
        return False
    first, returned = schema.arguments[0].alias_info, schema.returns[0].alias_info
    if first is None or returned is None:
        return False
    return bool(first.is_write and returned.before_set == first.before_set)


def storage_key(tensor: Tensor) -> int:
    """A number that views of one storage share, as long as it lives."""
    return int(tensor.untyped_storage()._cdata)


def version_of(tensor: Tensor) -> int:
    """A number that every write in place moves, an optimizer's step too; writes through `.data` don't."""
    return tensor._version


def state_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's own parameters and buffers, without the buffers that its state leaves out."""
    left_out = module._non_persistent_buffers_set
    buffers = [item for item in module.named_buffers(recurse=False) if item[0] not in left_out]
    return [*module.named_parameters(recurse=False), *buffers]


def softmax_backward(grad: Tensor, probs: Tensor) -> Tensor:
    r"""$p \odot (g - \sum_j p_j g_j)$ over the last dimension, in float32 up to the rounding of the result."""
    return torch._softmax_backward_data(grad, probs, -1, probs.dtype)


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions that oneDNN multiplies bfloat16 with; without, it is emulated."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def laid_out_linear(weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor]:
    """A linear layer, on CPU with a copy of its weights that lies as oneDNN's kernels read them.

    These are the operators of torch's compiler; a torch without them, other dtypes, bfloat16 on a CPU that doesn't
    multiply it, and processors other than x86, where none of this was tried, get plain products.

    Args:
        weight: (out, in).
        bias: (out,).
        rows: Rows of inputs that the layout is made for; it serves any number.
    """
    ops: Any = torch.ops.mkldnn
    lay_out = getattr(ops, "_reorder_linear_weight", None)
    multiply = getattr(ops, "_linear_pointwise", None)
    known = platform.machine().lower() in ("x86_64", "amd64") and (
        weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and multiplies_bfloat16())
    )
    if weight.device.type != "cpu" or not known or lay_out is None or multiply is None:
        return partial(F.linear, weight=weight, bias=bias)
    laid_out = lay_out(weight, rows)
    return lambda x: multiply(x, laid_out, bias, "none", [], "")


def collectives_begun() -> int:
    """How many this process has begun, of all groups; of ranks that run the same program, one behind has fewer."""
    groups: Any = dist.distributed_c10d._world.pg_map
    return sum(group._get_sequence_number_for_group() for group in groups)


def own_store() -> Any:
    """The store by which the processes found each other, on a connection of its own, for use by another thread."""
    store: Any = dist.distributed_c10d._get_default_store()
    return store.clone()


class NCCLGroup:
    """The first process of an NCCL group that is none of torch.distributed's: others join it by a number.

    Args:
        size: How many there are.
        number: What all join by; they must at the same time.
    """

    def __init__(self, size: int, number: bytes) -> None:
        self._group = [nccl.init_rank(size, number, 0)]
        # vLLM's workers begin with the sum of one number.
        nccl.all_reduce([torch.zeros(1, device="cuda")], comms=self._group)

    @staticmethod
    def number() -> bytes:
        """A new one."""
        made: bytes = nccl.unique_id()
        return made

    def broadcast(self, tensor: Tensor) -> None:
        """Send a tensor to the others, on the current stream, without waiting for them."""
        nccl.broadcast([tensor], comms=self._group)


def flash_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_from: Tensor,
    key_from: Tensor,
    longest_query: int,
    longest_key: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, ...]:
    """Attention within sequences that lie one after another.

    Args:
        query: (n, heads, d).
        key: (m, groups, d).
        value: (m, groups, d).
        query_from: (S + 1,) int32: where each sequence of queries begins, and the end.
        key_from: (S + 1,) int32.
        longest_query: Of a sequence.
        longest_key: Of a sequence.
        causal: Whether query i attends to keys up to i alone.
        scale: Of the scores.

    Returns:
        (n, heads, d); the log of the normalizers (heads, n), float32; two tensors that backward wants.
    """
    lengths = (query_from, key_from, longest_query, longest_key)
    attend = torch.ops.aten._flash_attention_forward
    found = attend(query, key, value, *lengths, 0.0, causal, False, scale=scale)
    return tuple(found[:4])


def flash_attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    normalizer: Tensor,
    query_from: Tensor,
    key_from: Tensor,
    longest_query: int,
    longest_key: int,
    causal: bool,
    scale: float,
    *state: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of the inputs of `flash_attend`, from output and normalizers that may be of more keys."""
    lengths = (query_from, key_from, longest_query, longest_key)
    gradients: tuple[Tensor, ...] = torch.ops.aten._flash_attention_backward(
        grad, query, key, value, out, normalizer, *lengths, 0.0, causal, *state, scale=scale
    )
    return gradients
