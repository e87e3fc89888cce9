"""lit_rlhf and its peers on the same work, side by side: `python benchmarks/compare.py [--quick]`.

Each workload runs in fresh processes, in which peer and lit_rlhf work in turns, a step each; what is printed are ratios
of medians. Runs are kept under the work directory, so that an interrupted comparison goes on where it stopped;
`--fresh` forgets them. docs/PERFORMANCE.md says what each side is told.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# As a script, Python looks in this file's directory alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparison.inputs import add_places, make_inputs
from benchmarks.comparison.machine import CPUINFO, cpu_kind, fast_dtype, machine
from benchmarks.comparison.report import tables
from benchmarks.comparison.results import compare
from benchmarks.comparison.runner import Runner
from benchmarks.comparison.workloads import OURS, WORKLOADS, Workload
from benchmarks.markdown import find_place, insert
from benchmarks.peers.environments import versions_in
from lit_rlhf.files import write_text

_SHOWN = ("torch", "transformers", "peft", "lightning")


def main(args: Sequence[str] | None = None) -> None:
    """Command line of this file."""
    options = _parse(args)
    missing = [name for name in ("gguf", "vaderSentiment") if find_spec(name) is None]
    if missing:
        sys.exit(f"The comparison needs {' and '.join(missing)}: pip install -e '.[bench]'")
    if options.markdown is not None:
        find_place(options.markdown, options.place)  # before the work, not after it
    workloads = [WORKLOADS[name] for name in WORKLOADS if name in options.workloads]
    start = time.perf_counter()
    inputs = replace(
        make_inputs(options.root, options.work / "inputs"), dtype=options.dtype, cpu=options.cpu
    )
    versions = _environments(workloads, options.work)
    prepared = time.perf_counter() - start
    print(f"Weights are in {options.dtype}, which this CPU multiplies.")
    print(f"Model, rows and environments: {prepared:.0f} s. Now the runs.", flush=True)
    runner = Runner(
        options.work,
        inputs,
        options.threads,
        options.quick,
        say=lambda line: print(line, flush=True),
    )
    if options.fresh:
        runner.ledger.forget()
    results: dict[str, Any] = {"quick": options.quick, "pairs": options.pairs, "versions": versions}
    results["machine"] = machine(options.threads, runner.peaks(), options.dtype)
    runs = runner.timed(workloads, options.pairs)
    runner.judge_generations(runs)
    judged = runner.judged(workloads)
    walls = [run.wall_seconds for run in judged.values()]
    for group in dict.fromkeys(group for group, _ in runs):  # its sides run at once
        pairs = zip(
            *(each for (of_group, _), each in runs.items() if of_group == group), strict=True
        )
        walls += [max(run.wall_seconds for run in pair) for pair in pairs]
    results["seconds"] = {"environments": prepared, "runs": sum(walls)}
    results["workloads"] = {
        workload.name: compare(workload, runs, judged, options.dtype) for workload in workloads
    }
    if options.cpu:
        for entry in results["workloads"].values():
            entry["unit"] = entry["unit"].replace("/s", "/CPU s")
            entry["utilisation"] = {}  # phases are in wall seconds
    text = tables(results)
    print(f"\n{text}")
    if options.json is not None:
        write_text(options.json, json.dumps(results, indent=2) + "\n")
    if options.markdown is not None:
        insert(options.markdown, options.place, text)


def _environments(workloads: Sequence[Workload], work: Path) -> dict[str, dict[str, str]]:
    """Make those that are missing; versions by name."""
    versions = {OURS: versions_in(sys.executable, _SHOWN)}
    for environment in dict.fromkeys(workload.peer.environment for workload in workloads):
        if environment is not None:
            environment.make(work)
            versions[environment.name] = environment.versions(work)
    return versions


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/compare.py", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one pair of few small steps: whether it works, not how fast it is",
    )
    parser.add_argument(
        "--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS), metavar="NAME"
    )
    parser.add_argument("--pairs", type=int, help="runs of each side (default: 3, quick: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results here")
    add_places(parser)
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="count CPU seconds of the processes, on a machine that does other work too; best with --threads 1",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="forget the runs made before with these settings"
    )
    options = parser.parse_args(args)
    options.pairs = options.pairs or (1 if options.quick else 3)
    options.work = options.work.resolve()
    options.dtype = fast_dtype()
    # One table for each kind of CPU: ratios in bfloat16 say nothing of CPUs that emulate it.
    options.place = f"compare-{cpu_kind(CPUINFO.read_text(encoding='utf-8'), options.dtype)}"
    return options


if __name__ == "__main__":
    main()
