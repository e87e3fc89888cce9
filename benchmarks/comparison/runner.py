"""Runs both sides of workloads in turn, each run in a fresh process, and keeps what was measured."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.comparison.inputs import Inputs
from benchmarks.comparison.ledger import Ledger, Measured, digest
from benchmarks.comparison.workloads import GROUPS, Side, Workload, sides_of
from benchmarks.peers.processes import ROOT, Run, measure


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

    def step(self, command: Sequence[str | Path], log: Path) -> Run:
        """One process."""
        return measure(command, log=log, threads=self.threads)

    def timed(
        self, workloads: Sequence[Workload], pairs: int
    ) -> dict[tuple[str, str], list[Measured]]:
        """By (group, side): `pairs` runs each; within a group the sides take turns."""
        found: dict[tuple[str, str], list[Measured]] = {}
        for group, sides in sides_of(workloads).items():
            told = GROUPS[group].settings(self.quick)
            for measured_side, measured in alternate(
                sides, pairs, lambda side, i, g=group, t=told: self.one(g, side, t, str(i))
            ):
                found.setdefault((group, measured_side.key), []).append(measured)
        return found

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

    def one(self, group: str, side: Side, told: dict[str, Any], suffix: str) -> Measured:
        """One run, unless it has been made."""
        settings = self.inputs.settings(group, told | side.options, self.threads)
        python = (
            sys.executable if side.environment is None else str(side.environment.python(self.work))
        )
        name = f"{group}-{side.key}-{suffix}"
        recipe = {
            "side": asdict(side),
            "settings": asdict(settings),
            "code": source_digest(ours=side.environment is None),
        }
        fresh = self.ledger.find(name, recipe) is None
        log = self.work / "logs" / f"{'quick' if self.quick else 'full'}-{name}.log"
        command = [python, "-m", side.module, settings.dumps()]
        measured = self.ledger.get(name, recipe, lambda: self.step(command, log))
        what = f"{measured.samples_per_second:.3g} samples/s, {measured.peak_gigabytes:.2f} GB"
        self.say(
            f"{name}: {what}, {measured.wall_seconds:.0f} s{'' if fresh else ' (kept from before)'}"
        )
        return measured


def alternate(
    sides: Sequence[Side], pairs: int, run: Callable[[Side, int], Measured]
) -> list[tuple[Side, Measured]]:
    """A B A B: every side once, then every side again, so that a slow spell of the machine meets all of them."""
    return [(side, run(side, i)) for i in range(pairs) for side in sides]


def source_digest(ours: bool) -> str:
    """Of the code that a run executes: the workloads' scripts, and the library on our side."""
    folders = [ROOT / "benchmarks" / "workloads"] + ([ROOT / "lit_rlhf"] if ours else [])
    return digest(path for folder in folders for path in folder.rglob("*.py"))
