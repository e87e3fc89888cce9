"""A progress bar that shows what goes on inside an iteration, for one may take minutes."""

import time
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    CustomBarColumn,
)
from rich import get_console
from rich.progress import ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from lit_rlhf.internals.lightning import iterations_done, place_metrics
from lit_rlhf.modules.phases import Phases

_LEFT_OF_METRICS = 50  # columns: epoch or phase, bar, batches, time left


class PhaseProgressBar(RichProgressBar):
    """Rich's progress bar with a second line for the phase of the iteration: rollout, reward, reference, update 3/8.

    A line stays one line: what doesn't fit the terminal is cut, and 80 columns have room for all but the last metrics.

    Where output is no terminal (a file, a job's log, a notebook without ipywidgets) it prints lines instead: one with
    times and metrics for each iteration, but at most one every `seconds_between_lines`; and where nothing was said for
    as long, one with the phase.

    Args:
        refresh_rate: Refreshes per second on a terminal; 0 shows nothing.
        leave: Keep the finished bar of each epoch.
        seconds_between_lines: Least time between two lines where output is no terminal; the last iteration always has
            one.
    """

    def __init__(
        self, refresh_rate: int = 10, leave: bool = False, seconds_between_lines: float = 10.0
    ) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self.seconds_between_lines = seconds_between_lines
        self._plain = False
        self._phase_id: TaskID | None = None
        self._phase_name = ""
        self._last_line = 0.0
        self._last_iteration_line = 0.0

    @property
    def is_enabled(self) -> bool:
        """Whether bars are drawn; lines are printed without them."""
        return super().is_enabled and not self._plain

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen to the module's phases."""
        super().setup(trainer, pl_module, stage)
        console = get_console()
        # In a notebook rich draws with widgets alone.
        notebook = console.is_jupyter and find_spec("ipywidgets") is not None
        self._plain = not (console.is_terminal or notebook)
        self._last_line = self._last_iteration_line = time.monotonic()
        phases = _phases(pl_module)
        if phases is not None and self._show not in phases.listeners and trainer.is_global_zero:
            phases.listeners.append(self._show)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop listening."""
        super().teardown(trainer, pl_module, stage)
        phases = _phases(pl_module)
        if phases is not None and self._show in phases.listeners:
            phases.listeners.remove(self._show)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What is logged for the bar, without the number of the logger's directory."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name.removeprefix("train/"): value for name, value in metrics.items()}

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Epoch or phase, bar, batches and the time left; metrics take the rest of the line."""
        room = max(get_console().width - _LEFT_OF_METRICS, 10)
        place_metrics(self, Column(no_wrap=True, overflow="ellipsis", max_width=room))
        whole = Column(no_wrap=True)
        return [
            TextColumn("{task.description}", table_column=whole),
            CustomBarColumn(bar_width=10, table_column=whole),  # theirs know of no end
            BatchesProcessedColumn(""),
            _TimeLeft(table_column=whole),
        ]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hide the phase; advance the bar, or print the iteration's line."""
        self._hide_phase()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        done = batch_idx + 1
        if self._lines_wanted and (
            done == self.total_train_batches or self._is_due(self._last_iteration_line)
        ):
            self._print(self._line(trainer, pl_module, done))
            self._last_iteration_line = self._last_line

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hide the phase."""
        self._hide_phase()
        super().on_validation_end(trainer, pl_module)

    def _line(self, trainer: Trainer, pl_module: LightningModule, done: int) -> str:
        parts = [f"epoch {trainer.current_epoch} iteration {done}/{self.total_train_batches}"]
        phases = _phases(pl_module)
        times = phases.seconds.items() if phases is not None else ()
        parts.append(", ".join(f"{name} {seconds:.1f} s" for name, seconds in times))
        metrics = self.get_metrics(trainer, pl_module).items()
        known = [(name, value) for name, value in metrics if isinstance(value, int | float)]
        parts.append(", ".join(f"{name} {value:.4g}" for name, value in known))
        return " | ".join(part for part in parts if part)

    def _show(self, name: str, done: int, total: int) -> None:
        """Told by the module of each step of each phase."""
        if self._lines_wanted and self._is_due(self._last_line):
            where = f"iteration {iterations_done(self.trainer)}: " if self.trainer.training else ""
            self._print(f"{where}{name} {done}/{total}" if total else f"{where}{name}")
        if self.progress is None or not self.is_enabled:
            return
        if self._phase_id is None or name != self._phase_name:
            self._hide_phase()
            self._phase_id = self._add_task(total or float("inf"), f"  {name}")
            self._phase_name = name
        self.progress.update(self._phase_id, completed=done)
        self.refresh()

    def _hide_phase(self) -> None:
        if self.progress is not None and self._phase_id is not None:
            self.progress.remove_task(self._phase_id)
        self._phase_id = None

    @property
    def _lines_wanted(self) -> bool:
        return self._plain and super().is_enabled

    def _is_due(self, last: float) -> bool:
        return time.monotonic() - last >= self.seconds_between_lines

    def _print(self, line: str) -> None:
        self._last_line = time.monotonic()
        get_console().print(line, markup=False, highlight=False, soft_wrap=True)


class _TimeLeft(ProgressColumn):
    """Time left, or, where there is no telling, the time that passed."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left, word = task.time_remaining, " left"
        if left is None or task.finished:
            left, word = task.elapsed or 0.0, ""
        return Text(f"{timedelta(seconds=int(left))}{word}", style="progress.remaining")


def _phases(pl_module: LightningModule) -> Phases | None:
    phases = getattr(pl_module, "phases", None)
    return phases if isinstance(phases, Phases) else None
