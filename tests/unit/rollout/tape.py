"""A recorder for CPU that is as blind as a CUDA graph: it repeats operators at the addresses of the first time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.internals.torch import OperatorMode, tensors_in
from lit_rlhf.rollout.steps import States

_READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique")


class Tape(OperatorMode):
    """Keeps each operator with its arguments and results; what a graph can't record is an error here too."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(name in str(func) for name in _READS):
            raise RuntimeError(f"{func} reads the device")
        results = func(*args, **kwargs)
        self.taken.append((func, args, kwargs, tensors_in(results)))
        return results

    def replay(self) -> None:
        """Run all again, and put each result where the first was."""
        with torch.no_grad():
            for func, args, kwargs, results in self.taken:
                again = tensors_in(func(*args, **kwargs))
                for old, new in zip(results, again, strict=True):
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)


class TapeRecorder:
    """Counts how often it has recorded."""

    def __init__(self) -> None:
        self.recordings = 0

    def __call__(self, once: Callable[[], States]) -> tuple[Callable[[], None], States]:
        """See `Recorder`."""
        self.recordings += 1
        once()  # as `GraphRecorder`: what is left of it must not stand in for what is recorded
        tape = Tape()
        with tape:
            results = once()
        return tape.replay, results
