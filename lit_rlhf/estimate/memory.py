"""Who holds how many bytes when code runs on tensors without numbers: a count of every array made and dropped."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.internals.torch import (
    OperatorMode,
    computes,
    described,
    makes_new,
    map_tensors,
    storage_key,
    tensors_in,
    writes_first,
)

OTHER = "temporaries"


class MemoryCount(OperatorMode):
    """While it is on, arrays on the meta device are counted from when they are made until nothing refers to them.

    Numbers that steer the code (lengths, masks, ids) are real and stand on the CPU: in an operation with arrays of the
    meta device they are taken there.

    Attributes:
        kernels: How many operators have run that compute something: on a GPU about as many kernels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self._known: dict[Any, tuple[Any, Any, torch.dtype]] = {}
        self._held: dict[int, tuple[str, int]] = {}
        self._parts: Counter[str] = Counter()
        self._live = self._most = 0
        self._peak: dict[str, int] = {}
        self._part = OTHER
        self._width: int | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.kernels += computes(func)
        kwargs = kwargs or {}
        tensors = tensors_in(args, kwargs)
        places = {x.is_meta for x in tensors}
        if len(places) == 2:
            if func.name() in _INDEXED:
                args = (args[0], _places(args[1]), *args[2:])
            args, kwargs = map_tensors(lambda x: x.to("meta"), (args, kwargs))
        result = self._run(func, args, kwargs) if True in places else func(*args, **kwargs)
        for x in (result,) if isinstance(result, Tensor) else tensors_in(result):
            if x.is_meta:
                self._add(x)
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of an operator: what one of such arguments gave before, where it is a new array."""
        if (written := writes_first(func)) or func.name() in _STAND_INS:
            return args[0] if written else _STAND_INS[func.name()](*args)
        key = None
        if makes_new(func):
            key = func, described(args), described(tuple(kwargs.items()))
            if (known := self._known.get(key)) is not None:
                shape, stride, dtype = known
                return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        result = func(*args, **kwargs)
        if key is not None and isinstance(result, Tensor):
            self._known[key] = result.shape, result.stride(), result.dtype
        return result

    @contextmanager
    def part(self, name: str, logits: int | None = None) -> Iterator[None]:
        """Arrays made within are for this; those as wide as `logits` (the vocabulary) are called logits."""
        before = self._part, self._width
        self._part, self._width = name, logits or self._width
        try:
            yield
        finally:
            self._part, self._width = before

    def hold(self, part: str, tensor: Tensor, size: int | None = None) -> None:
        """Count an array that was there before; `size` where it will take other bytes than now."""
        key = storage_key(tensor)
        if key not in self._held:
            self._hold(key, part, tensor.untyped_storage().nbytes() if size is None else size)

    def assign(self, part: str, *tensors: Tensor) -> None:
        """Say afterwards what arrays are for."""
        for tensor in tensors:
            key = storage_key(tensor)
            if key in self._held:
                before, size = self._held[key]
                self._held[key] = part, size
                self._parts[before] -= size
                self._parts[part] += size

    def now(self) -> dict[str, int]:
        """Bytes that are held at the moment, by what they are for."""
        return {part: size for part, size in self._parts.items() if size}

    def forget_peak(self) -> None:
        """Let the mark begin anew at what is held now."""
        self._most, self._peak = self._live, dict(self._parts)

    def peak(self) -> dict[str, int]:
        """The same of the moment since at which the most was held."""
        return {part: size for part, size in self._peak.items() if size}

    def _add(self, tensor: Tensor) -> None:
        key = storage_key(tensor)
        if key in self._held:
            return
        storage = tensor.untyped_storage()
        wide = self._width is not None and tensor.dim() > 1 and tensor.shape[-1] == self._width
        self._hold(key, "logits" if wide else self._part, storage.nbytes())

        def drop() -> None:
            part, size = self._held.pop(key)
            self._parts[part] -= size
            self._live -= size

        weakref.finalize(storage, drop)

    def _hold(self, key: int, part: str, size: int) -> None:
        self._held[key] = part, size
        self._parts[part] += size
        self._live += size
        if self._live > self._most:
            self._most, self._peak = self._live, dict(self._parts)


def _places(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Indices with the positions of a mask in its place: how many there are can't be known on the meta device."""
    found: list[Tensor | None] = []
    for index in indices:
        is_mask = index is not None and index.dtype == torch.bool
        found += index.nonzero().unbind(1) if is_mask and index is not None else [index]
    return found


_INDEXED = {"aten::index.Tensor", "aten::index_put_", "aten::index_put"}


_STAND_INS: dict[str, Any] = {
    "mkldnn::_reorder_linear_weight": lambda weight, *_: weight.clone(),
    "mkldnn::_linear_pointwise": lambda x, weight, *_: x.new_empty(*x.shape[:-1], len(weight)),
}
"""Of operators that the meta device lacks."""
