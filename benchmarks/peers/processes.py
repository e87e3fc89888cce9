"""Measured runs of commands, each in a fresh process.

    run = measure([python, "-m", "benchmarks.workloads.x"], threads=2, log=Path("x.log"))
    run.result, run.seconds, run.peak_rss

The command reports by calling `report({...})`, which any environment can import: this file needs the standard library
alone.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_MARK = "RESULT "
_INTERVAL = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Run:
    """What a process did.

    Attributes:
        result: What it reported.
        seconds: Wall time from start to end, imports included.
        peak_rss: Bytes: the highest resident memory of the process and all its descendants together.
    """

    result: dict[str, Any]
    seconds: float
    peak_rss: int


def report(result: Mapping[str, Any]) -> None:
    """Hand a result to the process that measures this one."""
    print(_MARK + json.dumps(result), flush=True)


def measure(
    command: Sequence[str | Path],
    *,
    log: Path,
    threads: int = 2,
    timeout: float = 3600.0,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """Run a command in the repository's root and wait for it.

    Args:
        command: Program and arguments.
        log: Where its output goes, for people to read.
        threads: Cores it is confined to, and threads of its arithmetic.
        timeout: Seconds after which it is killed with all its descendants.
        environment: Variables to add or replace.

    Raises:
        RuntimeError: It failed, ran out of time or reported nothing; the message has the end of its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=_environment(threads, environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        os.sched_setaffinity(process.pid, _cores(threads))
        watch = _Watch(process.pid)
        watch.start()
        overdue = threading.Timer(timeout, _kill, [process.pid])
        overdue.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            _kill(process.pid)
            raise
        finally:
            overdue.cancel()
            watch.done.set()
    seconds = time.perf_counter() - start
    watch.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text(encoding="utf-8", errors="replace")
    reported = [line for line in text.splitlines() if line.startswith(_MARK)]
    if process.returncode or not reported:
        failure = (
            f"ended with status {process.returncode}" if process.returncode else "reported nothing"
        )
        late = f" (the limit is {timeout:.0f} s)" if seconds >= timeout else ""
        raise RuntimeError(
            f"{' '.join(map(str, command))} {failure} after {seconds:.0f} s{late}. The end of {log}:\n{text[-3000:]}"
        )
    # The kernel's own mark of the process itself has no gaps, the sum over descendants is sampled: the higher one
    # holds.
    return Run(
        json.loads(reported[-1].removeprefix(_MARK)),
        seconds,
        max(watch.peak, usage.ru_maxrss * 1024),
    )


def _environment(threads: int, more: Mapping[str, str]) -> dict[str, str]:
    count = str(threads)
    fixed = {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    return {**os.environ, **fixed, **more}


def _cores(threads: int) -> set[int]:
    return set(sorted(os.sched_getaffinity(0))[:threads])


class _Watch(threading.Thread):
    """Samples the resident memory of a process tree."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.peak = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(_INTERVAL):
            self.peak = max(self.peak, sum(_resident(process) for process in _tree(self.root)))


def _tree(root: int) -> list[int]:
    found = [root]
    for process in found:
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            found += [int(child) for child in _read(task).split()]
    return found


def _resident(process: int) -> int:
    numbers = _read(Path(f"/proc/{process}/statm")).split()
    return int(numbers[1]) * _PAGE if numbers else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:  # it has ended
        return ""


def _kill(root: int) -> None:
    for process in reversed(_tree(root)):
        try:
            os.kill(process, 9)
        except ProcessLookupError:
            continue


if sys.platform != "linux":
    raise SystemExit("Benchmarks read /proc and pin cores: they run on Linux.")
