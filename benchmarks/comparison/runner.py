"""Runs both sides of workloads in turns, each run in a fresh process, and keeps what was measured."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.comparison.inputs import Inputs
from benchmarks.comparison.ledger import Ledger, Measured, digest
from benchmarks.comparison.workloads import GROUPS, Side, Workload, sides_of
from benchmarks.peers import turns
from benchmarks.peers.processes import ROOT, Run, measure
from benchmarks.workloads.settings import Settings


@dataclass(frozen=True)
class Runner:
    """Where and how runs are made.

    Attributes:
        work: Environments, logs and results.
        inputs: What workloads read.
        threads: Cores and threads of each process.
        quick: Whether quick settings hold.
        say: Called with a line for people.
    """

    work: Path
    inputs: Inputs
    threads: int
    quick: bool
    say: Callable[[str], None] = print

    @property
    def ledger(self) -> Ledger:
        """Of quick and full runs apart."""
        return Ledger(self.work / "runs" / ("quick" if self.quick else "full"))

    def peaks(self) -> dict[str, float]:
        """FLOP/s of matrix products by dtype, measured now, in a process of its own."""
        command = [sys.executable, "-m", "benchmarks.workloads.peak", str(self.threads)]
        run = self.step(command, self.work / "logs" / "peak.log")
        return dict(run.result["peaks"])

    def step(
        self,
        command: Sequence[str | Path],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> Run:
        """One process."""
        return measure(command, log=log, threads=self.threads, environment=environment)

    def timed(
        self, workloads: Sequence[Workload], pairs: int
    ) -> dict[tuple[str, str], list[Measured]]:
        """By (group, side): `pairs` runs each; within a group the sides take turns."""
        found: dict[tuple[str, str], list[Measured]] = {}
        for group, sides in sides_of(workloads).items():
            for pair in range(pairs):
                measured = self.together(group, sides, str(pair))
                for side, each in zip(sides, measured, strict=True):
                    found.setdefault((group, side.key), []).append(each)
        return found

    def together(self, group: str, sides: Sequence[Side], suffix: str) -> list[Measured]:
        """A run of each side, those of them at once that haven't been made: they work in turns, a step each."""
        told = GROUPS[group].settings(self.quick)
        missing = [side.key for side in sides if self._kept(group, side, told, suffix) is None]
        file = self.work / "turns"
        told_turns = dict(zip(missing, turns.begin(file, missing), strict=True))
        with ThreadPoolExecutor(len(sides)) as pool:
            runs = [
                pool.submit(self.one, group, side, told, suffix, told_turns.get(side.key))
                for side in sides
            ]
            try:
                wait(runs, return_when=FIRST_EXCEPTION)
            finally:
                while wait(runs, timeout=1).not_done:  # they wait for one that failed
                    file.unlink(missing_ok=True)
                file.unlink(missing_ok=True)
        return [run.result() for run in runs]

    def judged(self, workloads: Sequence[Workload]) -> dict[tuple[str, str], Measured]:
        """By (group, side): the runs by which the sides' work is compared, where the timed ones don't tell."""
        found: dict[tuple[str, str], Measured] = {}
        for group, sides in sides_of(workloads).items():
            judged = GROUPS[group].judged
            if judged is None or self.quick:
                continue
            for side in sides:
                found[group, side.key] = self.one(
                    group, side, GROUPS[group].full | judged, "judged"
                )
        return found

    def judge_generations(self, runs: dict[tuple[str, str], list[Measured]]) -> None:
        """Add `regret` to the first greedy run of each side; a process of its own holds the judge."""
        for (group, side), of_side in runs.items():
            completions = of_side[0].result.get("greedy")
            if completions is None:
                continue
            data = self.inputs.settings(group, GROUPS[group].full, self.threads).data
            told = {"model": str(self.inputs.model), "data": data, "threads": self.threads}
            told["completions"] = completions
            command = [sys.executable, "-m", "benchmarks.comparison.regret", json.dumps(told)]
            name = f"regret-{group}-{side}"
            work = partial(self.step, command, self.work / "logs" / f"{name}.log")
            measured = self.ledger.get(name, told, work)
            of_side[0].result["regret"] = measured.result["mean"]

    def one(
        self,
        group: str,
        side: Side,
        told: dict[str, Any],
        suffix: str,
        environment: Mapping[str, str] | None = None,
    ) -> Measured:
        """One run, unless it has been made."""
        name, recipe, settings = self._recipe(group, side, told, suffix)
        fresh = self.ledger.find(name, recipe) is None
        python = (
            sys.executable if side.environment is None else str(side.environment.python(self.work))
        )
        log = self.work / "logs" / f"{'quick' if self.quick else 'full'}-{name}.log"
        command = [python, "-m", side.module, settings.dumps()]
        measured = self.ledger.get(name, recipe, lambda: self.step(command, log, environment))
        what = f"{measured.samples_per_second:.3g} samples/s, {measured.peak_gigabytes:.2f} GB"
        self.say(
            f"{name}: {what}, {measured.wall_seconds:.0f} s{'' if fresh else ' (kept from before)'}"
        )
        return measured

    def _kept(self, group: str, side: Side, told: dict[str, Any], suffix: str) -> Measured | None:
        name, recipe, _ = self._recipe(group, side, told, suffix)
        return self.ledger.find(name, recipe)

    def _recipe(
        self, group: str, side: Side, told: dict[str, Any], suffix: str
    ) -> tuple[str, dict[str, Any], Settings]:
        """Name, recipe and settings of a run."""
        settings = self.inputs.settings(group, told | side.options, self.threads)
        code = source_digest(ours=side.environment is None)
        recipe = {"side": asdict(side), "settings": asdict(settings), "code": code}
        return f"{group}-{side.key}-{suffix}", recipe, settings


def source_digest(ours: bool) -> str:
    """Of the code that a run executes: the workloads' scripts, and the library on our side."""
    folders = [ROOT / "benchmarks" / "workloads"] + ([ROOT / "lit_rlhf"] if ours else [])
    return digest(path for folder in folders for path in folder.rglob("*.py"))
