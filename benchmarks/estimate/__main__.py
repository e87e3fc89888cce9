"""Estimated and measured memory of nine configurations of 71M weights on a CPU.

    python -m benchmarks.estimate --work runs/estimate [--markdown docs/ESTIMATE.md]

Each is trained for two steps in a process of its own, once with an allocator that gives back what is freed, once as
glibc has it by itself: that keeps holes of many sizes. What counts is the most resident memory, less what the process
held when it had trained a tiny model in the same way. It doesn't depend on how busy the machine is.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.estimate.cases import CASES, Case
from benchmarks.markdown import insert, table
from benchmarks.peers.processes import measure
from lit_rlhf.estimate import Card, Plan, run_plan
from lit_rlhf.testing.tokenizers import make_tokenizer

GOAL = 0.15
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "1048576"}
"""glibc then takes an array of 1 MiB or more from the system, and gives it back when it is dropped."""
_CPU = Card("CPU", "cpu", 1e12, 1e10, {torch.float32: 1e11}, "memory", 0.0, slack=0.0, launch=0.0)
"""Nothing is added to what arrays take."""


def estimated(case: Case) -> float:
    """Bytes."""
    with tempfile.TemporaryDirectory() as directory:
        make_tokenizer().save_pretrained(directory)
        return run_plan(Plan(case.module(directory), case.workload, _CPU)).need


def shown(results: dict[str, dict[str, float]]) -> str:
    """Markdown of estimated and measured bytes by configuration."""
    rows = []
    for name, found in results.items():
        ratio = found["estimated"] / found["measured"]
        mark = "" if abs(ratio - 1) <= GOAL else " **missed**"
        cells = [f"{found[key] / 2**20:,.0f}" for key in ("estimated", "measured", "default")]
        rows.append([name, *cells[:2], f"{ratio:.2f}{mark}", cells[2]])
    heads = ["configuration", "estimated, MiB", "measured, MiB", "estimated / measured"]
    return table([*heads, "measured, glibc's own way"], rows)


def main(args: Sequence[str] | None = None) -> None:
    """Measure what isn't measured yet, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimate", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="directory for results and logs")
    parser.add_argument("--markdown", type=Path, help="page to put the table into")
    options = parser.parse_args(args)
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "results.json"
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    for number, (name, case) in enumerate(CASES.items()):
        if name not in results:
            command = [sys.executable, "-m", "benchmarks.estimate.measured", str(number)]
            runs = {"measured": GIVES_BACK, "default": {}}
            found = {"estimated": estimated(case)}
            for key, environment in runs.items():
                log = options.work / f"{number}-{key}.txt"
                run = measure(command, log=log, threads=1, environment=environment)
                found[key] = run.result["bytes"]
            results[name] = found
            kept.write_text(json.dumps(results, indent=2), encoding="utf-8")
    text = shown(results)
    print(text)
    if options.markdown is not None:
        insert(options.markdown, "estimate", text)


if __name__ == "__main__":
    main()
