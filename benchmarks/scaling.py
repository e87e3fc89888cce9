"""How time and memory of an update and of generation grow: `python benchmarks/scaling.py [--quick]`.

Against samples per prompt, prompt length, completion length and model size (random weights), each point in a fresh
process; plotted as one SVG, with the share of the measured bfloat16 peak. Points are kept under the work directory.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

# As a script, Python looks in this file's directory alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparison.growth import growth, plot, points, shown
from benchmarks.comparison.inputs import add_places, make_inputs
from benchmarks.comparison.ledger import Ledger
from benchmarks.comparison.machine import machine
from benchmarks.comparison.runner import source_digest
from benchmarks.markdown import find_place, insert
from benchmarks.peers.processes import Run, measure
from benchmarks.workloads.growth_point import Point
from lit_rlhf.files import write_text


def main(args: Sequence[str] | None = None) -> None:
    """Command line of this file."""
    options = _parse(args)
    if options.markdown is not None:
        find_place(options.markdown, "scaling")  # before the work, not after it
    work: Path = options.work.resolve()
    model = make_inputs(options.root, work / "inputs").model
    ledger = Ledger(work / "runs" / "scaling")
    if options.fresh:
        ledger.forget()
    axes = {}
    for axis, of_axis in points(model, options.quick, options.threads).items():
        axes[axis] = []
        for point in of_axis:
            sizes = (point.prompts, point.prompt, point.samples, point.completion)
            name = "-".join(map(str, (*sizes, *point.overrides.values())))
            recipe = {"point": asdict(point), "code": source_digest(ours=True)}
            measured = ledger.get(
                name, recipe, lambda p=point, n=name: _run(p, work / "logs" / f"scaling-{n}.log")
            )
            seconds = ", ".join(
                f"{phase} {value:.2f} s" for phase, value in measured.result["seconds"].items()
            )
            print(f"{axis} {name}: {seconds}, {measured.peak_gigabytes:.2f} GB", flush=True)
            axes[axis].append(measured.result)
    plot(axes, options.svg)
    peaks = {
        name: max(r["peaks"][name] for of in axes.values() for r in of)
        for name in ("float32", "bfloat16")
    }
    results = {
        "quick": options.quick,
        "machine": machine(options.threads, peaks, "bfloat16"),
        "axes": axes,
        "growth": {axis: growth(axis, of) for axis, of in axes.items()},
    }
    text = shown(axes)
    print(f"\n{text}")
    write_text(options.json, json.dumps(results, indent=2) + "\n")
    if options.markdown is not None:
        insert(options.markdown, "scaling", text)


def _run(point: Point, log: Path) -> Run:
    command = [sys.executable, "-m", "benchmarks.workloads.growth_point", json.dumps(asdict(point))]
    return measure(command, log=log, threads=point.threads)


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/scaling.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a thin grid of small points")
    for kind in ("svg", "json"):
        place = Path(f"runs/compare/scaling.{kind}")
        parser.add_argument(f"--{kind}", type=Path, default=place, metavar="FILE")
    add_places(parser)
    parser.add_argument("--fresh", action="store_true", help="forget the points measured before")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
