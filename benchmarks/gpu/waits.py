"""Where training waits for the card: each wait lets it run dry, for nothing is queued meanwhile."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from benchmarks.gpu.methods import ADAM, KINDS, ONLINE, make
from benchmarks.gpu.result import Result
from benchmarks.gpu.setting import Setting
from lit_rlhf.models import LoraSpec, ModelSpec

SHOWN = 12
"""Places that are named, those with most waits first."""


class LastStep(Callback):
    """Watches the second step, when everything has been used once."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.places: Counter[str] = Counter()
        self.watching: Any = None

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        """Begin to watch."""
        if index == 1:
            self.watching = waits_by_place(self.places, self.on_gpu)
            self.watching.__enter__()

    def on_train_batch_end(self, *args: Any) -> None:
        """A step has ended."""
        if self.watching is not None:
            self.watching.__exit__(None, None, None)
            self.watching = None


@contextmanager
def waits_by_place(places: Counter[str], on_gpu: bool) -> Iterator[None]:
    """Count the waits for the card by the line of Python that waits; without a card there are none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchroniz" in str(warning.message):
            places[f"{'/'.join(Path(warning.filename).parts[-3:])}:{warning.lineno}"] += 1


def waits(setting: Setting, result: Result) -> None:
    """A step of each method on a tiny model: how often it waits, and where most."""
    for name in KINDS:
        with result.attempt(name):
            module = make(
                name, ModelSpec(name=setting.tiny, lora=LoraSpec(rank=8)), tokens=8, optimizer=ADAM
            )
            rows = setting.rows(16)
            watch = LastStep(setting.on_gpu)
            setting.trainer([watch]).fit(module, setting.data(KINDS[name], 8, rows))
            result.measure(f"{name}, a step", waits=float(sum(watch.places.values())))
            most = ", ".join(f"{place} {n}" for place, n in watch.places.most_common(SHOWN))
            result.note(f"{name} waits" + (" (with its decoding)" if name in ONLINE else ""), most)
