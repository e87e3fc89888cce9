"""`killed.py WHERE WORDS`: `lit-rlhf WORDS` in one process, which SIGKILL ends before a change of a file.

WHERE is a pattern of the change, such as `os.rename .*/runs/rounds.json$`; that of which none comes lets it end.
"""

import os
import re
import signal
import sys
from typing import Any

from lit_rlhf.cli import iterate, main

_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")


def _change(event: str, given: tuple[Any, ...]) -> str | None:
    """What is done to which paths; None of what changes no file."""
    writes = event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR)
    if not writes and event not in _CHANGES:
        return None
    places = given[: 2 if event == "os.rename" else 1]
    if any(not isinstance(place, (str, bytes, os.PathLike)) for place in places):
        return None  # a descriptor
    return " ".join([event, *(os.path.abspath(os.fsdecode(place)) for place in places)])  # noqa: PTH100 - audited


def kill_before(where: str) -> None:
    """End this process before the first change that a pattern matches."""
    wanted = re.compile(where)

    def watch(event: str, given: tuple[Any, ...]) -> None:
        change = _change(event, given)
        if change is not None and wanted.match(change):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


if __name__ == "__main__":
    kill_before(sys.argv[1])
    iterate.Subprocesses = lambda reader: reader  # type: ignore[assignment,misc]
    main(sys.argv[2:])
