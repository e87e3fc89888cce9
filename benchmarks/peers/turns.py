"""Processes that run at once and work one at a time, a step each: a slow spell of the machine meets all of them.

The one whose name stands first in a file has the turn. Standard library alone: any environment imports it.
"""

import atexit
import os
import time
from collections.abc import Sequence
from pathlib import Path

_FILE, _NAME = "BENCHMARKS_TURNS", "BENCHMARKS_TURN_OF"
_PAUSE = 0.005


def begin(file: Path, names: Sequence[str]) -> list[dict[str, str]]:
    """Have processes take turns in this order; variables for the environment of each.

    Where one fails, remove the file: the others end then.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, names)
    return [{_FILE: str(file), _NAME: name} for name in names]


def take() -> None:
    """Wait for this process's turn, where it is told of any; the turn is passed on for good when it ends.

    Raises:
        FileNotFoundError: Another one has failed.
    """
    if _NAME in os.environ:
        atexit.register(_leave)
        _wait()


def pass_on() -> None:
    """Let the others work, each a step; returns when this process's turn is there again."""
    if _NAME in os.environ:
        first, *others = _read()
        _write(Path(os.environ[_FILE]), [*others, first])
        _wait()


def _wait() -> None:
    while _read()[0] != os.environ[_NAME]:
        time.sleep(_PAUSE)


def _leave() -> None:
    if Path(os.environ[_FILE]).exists():
        _write(Path(os.environ[_FILE]), [name for name in _read() if name != os.environ[_NAME]])


def _read() -> list[str]:
    return Path(os.environ[_FILE]).read_text(encoding="utf-8").split()


def _write(file: Path, names: Sequence[str]) -> None:
    new = file.with_name(f".{file.name}.new")
    new.write_text(" ".join(names), encoding="utf-8")
    new.replace(file)
