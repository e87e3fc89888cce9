"""Phases of an iteration (rollout, reward, reference, update): timed once here, watched by progress bar and timer."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

PhaseListener = Callable[[str, int, int], None]
"""Called with the phase's name, how many steps of it are done and how many there are (0 when not known)."""


class Phases:
    """Seconds, tokens and FLOPs of each phase since `reset`, and listeners that are told of progress.

    Attributes:
        seconds: Spent in each phase.
        tokens: What each phase generated (rollout) or computed (the others), of all processes.
        flops: Of this process, as far as they are counted: float64 scalars that may still be under way on a device.
        current: The phase that is on, or None.
        peak: Bytes: the most that tensors took on the device in this iteration before their count was begun anew within
            it; 0 where it wasn't.

    Example:
        >>> phases = Phases()
        >>> with phases("rollout"):
        ...     pass
        >>> list(phases.seconds)
        ['rollout']
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.tokens: defaultdict[str, int] = defaultdict(int)
        self.flops: defaultdict[str, torch.Tensor | float] = defaultdict(float)
        self.current: str | None = None
        self.peak = 0
        self.listeners: list[PhaseListener] = []

    @contextmanager
    def __call__(self, name: str, total: int = 0) -> Iterator[Callable[[], None]]:
        """Time a phase; yields a function to call after each of its `total` steps."""
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            self._tell(name, done, total)

        self._tell(name, 0, total)
        before, self.current = self.current, name
        start = now()
        try:
            yield advance
        finally:
            self.current = before
            self.seconds[name] += now() - start

    def reset(self) -> None:
        """Forget all of these; an iteration begins."""
        self.seconds.clear()
        self.tokens.clear()
        self.flops.clear()
        self.peak = 0

    def _tell(self, name: str, done: int, total: int) -> None:
        for listener in self.listeners:
            listener(name, done, total)


def now() -> float:
    """Seconds on a clock, once the device has done what it was given."""
    # Work on an accelerator is asynchronous; without this a phase would be charged for its predecessor's kernels.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
