"""Processes that no longer go on together say who waits for whom, and end."""

import faulthandler
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlhf.distributed import num_ranks, rank
from lit_rlhf.internals.lightning import collective_timeout, iterations_done
from lit_rlhf.internals.torch import collectives_begun, own_store
from lit_rlhf.options import check_option

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits: started again, the same may succeed."""

_LOOKS = 10
"""Within the shorter of the two limits."""
_LONGEST_PAUSE = 10.0
_RUNS = itertools.count()
"""One for each fit: all processes count alike, and a name in the store is used once."""


class Beat(NamedTuple):
    """What a process says of itself."""

    number: int
    """One more each time."""
    collectives: int
    """How many it has begun."""
    where: str
    host: str
    pid: int
    born: str
    """Tells the process from a later one of the same number."""
    left: str = ""
    """How its training ended, once it has."""


class Standing:
    """What is known of all processes, from what each says of itself. Times are those between looks, not a clock's.

    Attributes:
        beats: The last of each; None before its first.
        silent: Seconds since each said anything.
        still: Seconds since each began a collective.
    """

    def __init__(self, ranks: int) -> None:
        self.beats: list[Beat | None] = [None] * ranks
        self.silent = [0.0] * ranks
        self.still = [0.0] * ranks

    def see(self, beats: Sequence[Beat | None], seconds: float) -> None:
        """Take note of what each says now.

        Args:
            beats: Of each process; None: nothing yet.
            seconds: Since the last look.
        """
        for each, (before, now) in enumerate(zip(self.beats, beats, strict=True)):
            said = now is not None and (before is None or now.number != before.number)
            moved = now is not None and (before is None or now.collectives != before.collectives)
            self.silent[each] = 0.0 if said else self.silent[each] + seconds
            self.still[each] = 0.0 if moved else self.still[each] + seconds
        self.beats = list(beats)

    def awaited(self, limit: float, silence: float) -> list[int]:
        """Those that others have waited for too long.

        A process waits if it has begun a collective that another hasn't. That one is awaited once it has said nothing
        more for as long as `silence`, or once neither of them has begun a collective for as long as `limit`.
        """
        begun = [-1 if beat is None else beat.collectives for beat in self.beats]
        furthest = max(begun)
        waited = max(s for s, count in zip(self.still, begun, strict=True) if count == furthest)
        behind = [each for each, count in enumerate(begun) if count < furthest]
        late = {each for each in behind if min(waited, self.still[each]) >= limit}
        gone = {each for each in behind if self.beats[each] and self.silent[each] >= silence}
        return sorted(late | gone)

    def describe(self) -> str:
        """A line for each process."""
        ranks = range(len(self.beats))
        return "\n".join(f"  rank {each}: {self._describe(each)}" for each in ranks)

    def _describe(self, each: int) -> str:
        beat, silent = self.beats[each], self.silent[each]
        if beat is None:
            return "has not begun to train"
        place = f"{beat.where}, collective {beat.collectives} begun {self.still[each]:.0f} s ago"
        quiet = f"says nothing for {silent:.0f} s" if silent > self.still[each] / 2 else ""
        state = beat.left or quiet
        return f"{place} (process {beat.pid} on {beat.host}{'; ' if state else ''}{state})"


class Watchdog(Callback):
    """Ends a run in which processes wait for one that doesn't come, and says which, where each of them is, and why.

    While `fit` trains, a thread of each process tells the others how many collective operations it has begun, and
    in which phase of which iteration it is. A process that has begun one which another hasn't waits for it. Once that
    one has been silent for as long as `silence` (it is stopped, its machine is gone), or alive but elsewhere for as
    long as `limit`, every process prints to stderr where each stands and the Python stack of all its threads, and ends
    with exit code 75. What is stopped on the same machine is killed. Supervisors then start the run again, and
    `--ckpt_path last` goes on.

    A process that nobody waits for is left alone, however long its rollout takes, and so is a run of one process. The
    processes speak through the store of torch.distributed by which they found each other, so that it costs a few
    hundred bytes every ten seconds, needs no file system and no GPU. That store lives in the first process or, with
    torchrun, in the launcher on its machine; one that doesn't answer counts as the first process's silence.

    Args:
        limit: Seconds, above 0. Default: nine tenths of the strategy's own `timeout`, after which torch ends the run
            with an error that names nobody; half an hour unless it is set.
        silence: Seconds, above 0; more than Python can be kept from running a thread.

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __init__(self, limit: float | None = None, silence: float = 300.0) -> None:
        check_option(limit is None or limit > 0, self, "limit", limit, "above 0 seconds, or null")
        check_option(silence > 0, self, "silence", silence, "above 0 seconds")
        self.limit = limit
        self.silence = silence
        self._watch: _Watch | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch, where there are others."""
        number = next(_RUNS)
        if num_ranks() > 1:
            limit = 0.9 * collective_timeout(trainer) if self.limit is None else self.limit
            self._watch = _Watch(trainer, pl_module, number, limit, self.silence)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the others that this process needs no one any more."""
        self._leave("has ended its training")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tell the others why this process will not come."""
        said = " ".join(str(exception).split())[:200]
        self._leave(f"ended with {type(exception).__name__}: {said}")

    def _leave(self, how: str) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.leave(how)


class _Watch:
    """The threads of one fit: one speaks with the store, which may never answer, and one judges."""

    def __init__(
        self, trainer: Trainer, module: LightningModule, number: int, limit: float, silence: float
    ) -> None:
        self._trainer, self._module = trainer, module
        self._limit, self._silence = limit, silence
        self._pause = min(limit / _LOOKS, silence / _LOOKS, _LONGEST_PAUSE)
        self._rank = rank()
        self._standing = Standing(num_ranks())
        self._keys = [f"lit-rlhf/watchdog/{number}/{each}" for each in range(num_ranks())]
        self._store = own_store()
        pid = os.getpid()
        self._self = Beat(0, 0, "", socket.gethostname(), pid, _birth(pid))
        self._heard: list[Beat | None] = [None] * num_ranks()
        self._answers = 0
        self._over = threading.Event()
        self._speaking = threading.Thread(target=self._speak, daemon=True)
        self._speaking.start()
        self._ending = threading.Event()
        self._judging = threading.Thread(target=self._judge, daemon=True)
        self._judging.start()

    def leave(self, how: str) -> None:
        """End, without waiting long for a store that doesn't answer."""
        if self._ending.is_set():  # an error, as others have ended: by the watchdog's word and code
            self._judging.join()
        self._self = self._self._replace(left=how)
        self._over.set()
        self._speaking.join(self._pause + 1)

    def _speak(self) -> None:
        """Say where this process is, and hear where the others are, until the end, which is said too."""
        over = False
        while not over:
            over = self._over.wait(self._pause if self._answers else 0)
            try:
                self._store.set(self._keys[self._rank], json.dumps(self._now()))
                self._heard = [
                    Beat(*json.loads(self._store.get(key))) if self._store.check([key]) else None
                    for key in self._keys
                ]
            except RuntimeError:  # no connection: the store's machine or process is gone
                continue
            self._answers += 1

    def _now(self) -> Beat:
        trainer = self._trainer
        phase = getattr(getattr(self._module, "phases", None), "current", None)
        stage = trainer.state.stage
        where = f"{phase or (stage.value if stage else 'setup')} of iteration {iterations_done(trainer)}"
        begun = collectives_begun()
        return self._self._replace(number=self._answers + 1, collectives=begun, where=where)

    def _judge(self) -> None:
        answers, unheard, begun, last = 0, 0.0, 0, time.monotonic()
        while not self._over.wait(self._pause):
            now = time.monotonic()
            unheard += min(now - last, 3 * self._pause)  # this process may have been stopped itself
            last = now
            if self._answers > answers:
                self._standing.see(self._heard, unheard)
                answers, unheard, begun = self._answers, 0.0, collectives_begun()
                awaited = self._standing.awaited(self._limit, self._silence)
                if awaited and not self._over.is_set():
                    self._end(awaited)
            elif begun != collectives_begun():  # whoever holds the store, the others come
                unheard, begun = 0.0, collectives_begun()
            elif unheard >= self._silence and not getattr(self._standing.beats[0], "left", ""):
                why = f": the run's store, on its machine, did not answer for {unheard:.0f} s"
                self._end([0], why)

    def _end(self, awaited: list[int], why: str = "") -> None:
        """Say who is awaited, kill those on this machine that are stopped and so can't end, and end."""
        self._ending.set()
        names = ", ".join(map(str, awaited))
        print(  # noqa: T201 - nothing may come between: no logger's lock, no progress bar
            f"Watchdog of rank {self._rank}: rank {names} did not come where others wait for it"
            f"{why}. Where each stood:\n{self._standing.describe()}\n"
            f"This process ends with exit code {EXIT_CODE}; --ckpt_path last goes on from the last checkpoint. Its "
            "threads are here:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=2)
        time.sleep(3 * self._pause)  # those that live see the same, and say theirs
        for each in awaited:
            beat = self._standing.beats[each]
            if beat is None or beat.host != self._self.host or self._heard[each] != beat:
                continue
            if beat.born == _birth(beat.pid):  # still the process that said so
                with suppress(ProcessLookupError):
                    os.kill(beat.pid, signal.SIGKILL)
        sys.stdout.flush()
        os._exit(EXIT_CODE)


def _birth(pid: int) -> str:
    """When a process began, as the system counts it; empty where it doesn't tell, or there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19]
    except OSError:
        return ""
