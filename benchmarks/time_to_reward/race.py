"""What both sides of a race share: its settings, its clock, and the adapters that it leaves. Needs torch alone."""

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.workloads.settings import Settings

Parameters = Iterable[tuple[str, torch.nn.Parameter]]
RUN = "run.json"
"""Beside the adapters: settings and clock of a run, as far as it came."""
PENALTY = 0.5
"""Taken off the score of a completion that didn't end."""


@dataclass(frozen=True)
class Race(Settings):
    """One run of one library.

    Attributes:
        minibatches: Optimizer steps of each pass.
        out: Where its adapters go.
        every: Iterations between two adapters that are kept.
    """

    minibatches: int = 1
    out: str = ""
    every: int = 2


def adapters(parameters: Parameters) -> dict[str, torch.nn.Parameter]:
    """The policy's LoRA matrices, by a name that no library has a part in."""
    found = {}
    for name, weight in parameters:
        for part in (".lora_A", ".lora_B"):
            if part + "." in name:
                found[name[name.index("layers.") :].split(part)[0] + part] = weight
    return found


class Pace:
    """Seconds of training by wall and by CPU, without those in which adapters are written.

    Args:
        race: What is run.
        parameters: The policy's; asked for at every adapter that is kept.
    """

    def __init__(self, race: Race, parameters: Callable[[], Parameters]) -> None:
        self.race, self.parameters = race, parameters
        self.marks: list[dict[str, Any]] = []
        self.iteration = 0
        self._left_out = _now()

    def start(self) -> None:
        """The first iteration begins."""
        self._left_out = _now()

    def tick(self) -> None:
        """An iteration has ended."""
        self.iteration += 1
        if self.iteration % self.race.every and self.iteration != self.race.steps:
            return
        before = _now()
        wall, cpu = before[0] - self._left_out[0], before[1] - self._left_out[1]
        folder, name = Path(self.race.out), f"{self.iteration:04}.pt"
        folder.mkdir(parents=True, exist_ok=True)
        found = adapters(self.parameters())
        torch.save(
            {name: weight.detach().clone() for name, weight in found.items()}, folder / "partial"
        )
        (folder / "partial").replace(folder / name)
        mark = {"iteration": self.iteration, "wall": wall, "cpu": cpu}
        self.marks.append(mark | {"file": name, "load": os.getloadavg()[0]})
        (folder / "partial").write_text(
            json.dumps({"race": asdict(self.race), "marks": self.marks}), encoding="utf-8"
        )
        (folder / "partial").replace(folder / RUN)
        after = _now()
        self._left_out = after[0] - wall, after[1] - cpu


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
