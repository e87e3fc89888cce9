"""`killed.py WHERE N WORDS`: `lit-rlhf WORDS` in one process, which SIGKILL ends before a change of a file.

It is the N-th that the pattern WHERE matches, such as `os.rename .*/runs/rounds.json$`; where none comes, it ends by
itself. A file that is opened is two: `open`, and `opened`, when nothing is in it yet. Changes by code that isn't
Python's go unseen.
"""

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from lit_rlhf.cli import iterate, main
from tests import warm

ROOT = Path(__file__).parents[1]

_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")


def _change(event: str, given: tuple[Any, ...]) -> str | None:
    """What is done to which paths; None of what changes no file."""
    writes = event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR)
    if not writes and event not in _CHANGES:
        return None
    places = given[: 2 if event == "os.rename" else 1]
    if any(not isinstance(place, (str, bytes, os.PathLike)) for place in places):
        return None  # a descriptor
    if event == "os.mkdir" and os.path.isdir(places[0]):  # noqa: PTH112 - audited
        return None
    return " ".join([event, *(os.path.abspath(os.fsdecode(place)) for place in places)])  # noqa: PTH100 - audited


def kill_before(where: str, number: int) -> None:
    """End this process before a change that a pattern matches."""
    wanted, matches = re.compile(where), itertools.count(1)

    def reach(change: str) -> None:
        if wanted.match(change) and next(matches) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, given: tuple[Any, ...]) -> None:
        change = _change(event, given)
        if change is None:
            return
        reach(change)
        if event == "open":

            def opened(frame: FrameType, *_: object) -> None:
                if frame.f_code is not watch.__code__:  # behind which the system opens it
                    sys.setprofile(None)
                    reach(change.replace("open", "opened", 1))

            sys.setprofile(opened)

    sys.addaudithook(watch)


def start(place: Path, where: str, number: int, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command so in a directory, and wait for its end."""
    return subprocess.run(
        [warm.python(), __file__, where, str(number), *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LIT_RLHF_CACHE": "cache"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


if __name__ == "__main__":
    kill_before(sys.argv[1], int(sys.argv[2]))
    iterate.Subprocesses = lambda reader: reader  # type: ignore[assignment,misc]
    main(sys.argv[3:])
