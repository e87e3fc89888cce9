"""What both sides do alike: the same initial adapters and heads, and the clock. Needs torch alone."""

import time
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.peers import turns
from benchmarks.workloads.settings import Settings


def start(settings: Settings) -> None:
    """Threads, clock and global seed; where others run at once, when it is this process's turn."""
    Clock.now = time.process_time if settings.cpu else time.perf_counter
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    turns.take()


def fill_adapters(parameters: Iterable[tuple[str, torch.nn.Parameter]], seed: int) -> None:
    """Draw every `lora_A` from the seed and the layer's path, so that both sides begin alike."""
    found = {
        name[name.index("layers.") :].split(".lora_A")[0]: weight
        for name, weight in parameters
        if ".lora_A." in name
    }
    random = torch.Generator().manual_seed(seed)
    for path in sorted(found):
        weight = found[path]
        drawn = torch.empty(weight.shape).uniform_(-1, 1, generator=random)
        weight.data.copy_(drawn * weight.shape[1] ** -0.5)


def head_weight(width: int, seed: int) -> Tensor:
    """(1, h): the scalar head of reward and value models."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(1, width, generator=random) * (width + 1) ** -0.5


class Clock:
    """Seconds of each step but the first, from the end of one step to the end of the next, data loading included.

    Where processes take turns, a step begins when the turn is there again.
    """

    now: ClassVar[Callable[[], float]] = time.perf_counter

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun: float | None = None

    def tick(self) -> None:
        """A step has ended."""
        if self._begun is not None:
            self.seconds.append(Clock.now() - self._begun)
        turns.pass_on()
        self._begun = Clock.now()
