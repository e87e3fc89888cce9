"""How many bytes of arrays a real run holds at most: every storage that is made, until nothing refers to it."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts while it is on.

    Attributes:
        peak: Bytes: the most that was held at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.live = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(x, Tensor):
                self._see(x)
        return result

    def _see(self, x: Tensor) -> None:
        owner: Any = x
        address, size = id(x), x.numel() * x.itemsize
        if x.layout == torch.strided:  # not oneDNN's, which has no storage that could be asked
            owner = x.untyped_storage()
            address, size = owner.data_ptr(), owner.nbytes()
        if not size or address in self._sizes:
            return
        self._sizes[address] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(owner, self._drop, address)

    def _drop(self, address: int) -> None:
        self.live -= self._sizes.pop(address, 0)
