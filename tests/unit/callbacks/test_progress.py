import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lit_rlhf.callbacks import PhaseProgressBar
from tests.unit.callbacks.standins import Data, Module, quiet_trainer


class Watching(PhaseProgressBar):
    """Notes what is on the bar whenever the module reports."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.shown: list[tuple[str, float, float | None]] = []

    def refresh(self, hard: bool = False) -> None:
        super().refresh(hard)
        if self.progress is not None and self._phase_id is not None:
            task = next(task for task in self.progress.tasks if task.id == self._phase_id)
            self.shown.append((task.description.strip(), task.completed, task.total))


def fit(
    tmp: Path,
    bar: PhaseProgressBar,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
    **options: Any,
) -> str:
    for module in (
        "rich",
        "lit_rlhf.callbacks.progress",
        "lightning.pytorch.callbacks.progress.rich_progress",
    ):
        monkeypatch.setattr(f"{module}.get_console", lambda: console)
    monkeypatch.setattr(
        "lightning.pytorch.callbacks.progress.rich_progress.reconfigure", lambda **_: None
    )
    trainer = quiet_trainer(
        tmp,
        [bar],
        enable_progress_bar=True,
        enable_checkpointing=False,
        limit_val_batches=2,
        **options,
    )
    module = Module(manual=True)
    trainer.fit(module, datamodule=Data())
    assert module.phases.listeners == []
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_the_phase_of_the_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    bar = Watching()
    fit(tmp_path, bar, console, monkeypatch, max_epochs=1)
    one = [shown for shown in bar.shown if shown[0] == "update"]
    assert ("update", 1, 2) in one
    assert ("update", 2, 2) in one
    assert any(name == "rollout" for name, _, _ in bar.shown)
    assert bar._phase_id is None


def test_a_file_gets_a_line_per_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    text = fit(
        tmp_path, PhaseProgressBar(seconds_between_lines=0.0), console, monkeypatch, max_epochs=1
    )
    lines = text.splitlines()
    assert "\x1b" not in text
    done = [line for line in lines if line.startswith("epoch 0 iteration ")]
    assert [line.split("|")[0].strip() for line in done] == [
        f"epoch 0 iteration {n}/6" for n in range(1, 7)
    ]
    assert all(re.search(r"rollout \d+\.\d s, update \d+\.\d s", line) for line in done)
    assert "iteration 3: update 1/2" in lines


def test_lines_are_rare_but_the_last_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    text = fit(tmp_path, PhaseProgressBar(seconds_between_lines=1000.0), console, monkeypatch)
    assert [line.split("|")[0].strip() for line in text.splitlines()] == [
        "epoch 0 iteration 6/6",
        "epoch 1 iteration 6/6",
    ]


def test_no_refreshes_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    assert (
        fit(
            tmp_path,
            PhaseProgressBar(refresh_rate=0, seconds_between_lines=0.0),
            console,
            monkeypatch,
        )
        == ""
    )
