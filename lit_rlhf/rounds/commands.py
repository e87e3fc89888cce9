"""How the commands of a round are run."""

import ctypes
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from typing import Any

from lit_rlhf.errors import LitRLHFError

INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class RoundError(LitRLHFError):
    """A step of a round that failed, or left no result."""


class Runner(ABC):
    """Runs commands of `lit-rlhf`."""

    @abstractmethod
    def run(self, words: Sequence[str]) -> None:
        """Run a command.

        Raises:
            RoundError: It failed.
        """

    @abstractmethod
    def parse(self, words: Sequence[str]) -> str:
        """The whole configuration of a command as YAML; nothing is run.

        Raises:
            RoundError: An option is wrong.
        """


class Subprocesses(Runner):
    """Each command in a process of its own: its memory is given back, and it may start processes on several devices.

    See `run_process`.

    Args:
        reader: Reads configurations in this process, which is quicker. None: that takes a process, too.
    """

    def __init__(self, reader: "InProcess | None" = None) -> None:
        self.reader = reader

    def run(self, words: Sequence[str]) -> None:
        """Run it, with this process's output."""
        status = run_process(words)
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        if status == _TERMINATED:
            raise SystemExit(_TERMINATED)
        if status:
            raise RoundError(f"{_said(words)} ended with status {status}")

    def parse(self, words: Sequence[str]) -> str:
        """Have it print its configuration."""
        if self.reader is not None:
            return self.reader.parse(words)
        done = subprocess.run(
            _command([*words, "--print_config"]), stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise RoundError(f"{_said(words)} can't be run so")
        return done.stdout


class InProcess(Runner):
    """Each command in this process: quicker to begin, for small models on one device.

    Args:
        main: `lit_rlhf.cli.main`.
    """

    def __init__(self, main: Callable[[Sequence[str]], None]) -> None:
        self.main = main

    def run(self, words: Sequence[str]) -> None:
        """Call it."""
        try:
            self.main(list(words))
        except SystemExit as stop:
            if stop.code == _TERMINATED:
                raise
            if stop.code:
                raise RoundError(f"{_said(words)} ended with status {stop.code}") from stop

    def parse(self, words: Sequence[str]) -> str:
        """Call it with `--print_config`."""
        printed = StringIO()
        with redirect_stdout(printed):
            self.run([*words, "--print_config"])
        return printed.getvalue()


def run_process(words: Sequence[str]) -> int:
    """Run a command of `lit-rlhf` in a process of its own, with this process's output.

    It ends with this process, however that ends. SIGTERM is passed on, so that a training saves itself; after Ctrl-C,
    which it gets by itself, it is waited for.

    Returns:
        Its status, as a shell tells it: 128 and the signal where one ended it; of Ctrl-C 130 always.
    """
    # Else a training whose parent was killed would go on, and hold the directory that the next start needs.
    bound = None
    if sys.platform == "linux":
        bound = partial(ctypes.CDLL(None).prctl, _DIE_WITH_PARENT, signal.SIGKILL)
    child = subprocess.Popen(_command(words), preexec_fn=bound)  # noqa: PLW1509
    with _passing_on(signal.SIGTERM, child):
        try:
            status = child.wait()
        except KeyboardInterrupt:
            child.wait()
            return INTERRUPTED
    return status if status >= 0 else 128 - status


def _command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "lit_rlhf", *words]


def _said(words: Sequence[str]) -> str:
    return f"`lit-rlhf {' '.join(words)}`"


@contextmanager
def _passing_on(number: signal.Signals, child: "subprocess.Popen[bytes]") -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return

    def pass_on(*_: Any) -> None:
        child.send_signal(number)

    before = signal.signal(number, pass_on)
    try:
        yield
    finally:
        signal.signal(number, before)
