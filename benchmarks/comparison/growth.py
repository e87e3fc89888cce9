"""How cost grows: which points are measured, how time and memory grow beside the arithmetic, and their plot."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.markdown import table
from benchmarks.workloads.growth_point import PHASES, Point

_SHAPE = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
)
SIZES: dict[str, dict[str, int]] = {
    "small": dict(zip(_SHAPE, (15, 384, 1024, 6, 2), strict=True)),
    "base": {},
    "large": dict(zip(_SHAPE, (32, 960, 2560, 15, 5), strict=True)),
}
"""Changes to the config of SmolLM2-135M: about 43, 135 and 362 million parameters."""

AXES = {
    "samples": "samples per prompt",
    "prompt": "prompt tokens",
    "completion": "completion tokens",
    "size": "parameters, millions",
}
_VALUES: dict[str, tuple[int, ...]] = {
    "samples": (1, 2, 4, 8, 16),
    "prompt": (64, 128, 256, 512, 1024),
    "completion": (16, 32, 64, 128, 256),
}
_QUICK: dict[str, tuple[int, ...]] = {
    "samples": (1, 4),
    "prompt": (64, 256),
    "completion": (16, 64),
}

Result = Mapping[str, Any]


def points(model: Path, quick: bool, threads: int) -> dict[str, list[Point]]:
    """By axis; every axis passes through the same base point."""
    base = Point(str(model), {}, prompts=2, prompt=128, samples=8, completion=32, threads=threads)
    if quick:
        base = replace(base, prompts=1, prompt=64, samples=4, completion=16, steps=2)
    values = _QUICK if quick else _VALUES
    found = {axis: [replace(base, **{axis: value}) for value in values[axis]] for axis in values}
    sizes = ("small", "base") if quick else tuple(SIZES)
    return found | {"size": [replace(base, overrides=SIZES[size]) for size in sizes]}


def place(axis: str, result: Result) -> float:
    """Where a point stands on its axis."""
    return float(result["parameters"]) / 1e6 if axis == "size" else float(result["point"][axis])


def utilisation(result: Result, phase: str) -> float:
    """Share of the bfloat16 peak of the same process."""
    return float(result["flops"][phase] / result["seconds"][phase] / result["peaks"]["bfloat16"])


def growth(axis: str, results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Exponents of time and of arithmetic by phase, over an axis, and their greatest local excess.

    An exponent is log(ratio of cost) / log(ratio of the axis); 1 is proportional. `excess` is the largest difference
    between the two over neighbouring points: above 0 time grows faster than the arithmetic says.
    """
    kinds = {"time": "seconds", "flops": "flops", "memory": "peak_bytes"}
    found = {}
    for phase in PHASES:

        def exponent(cost: str, a: Result, b: Result, phase: str = phase) -> float:
            ratio = b[cost][phase] / a[cost][phase]
            return math.log(ratio) / math.log(place(axis, b) / place(axis, a))

        whole = {name: exponent(cost, results[0], results[-1]) for name, cost in kinds.items()}
        local = [exponent("seconds", *two) - exponent("flops", *two) for two in pairwise(results)]
        found[phase] = whole | {"excess": max(local)}
    return found


def shown(axes: Mapping[str, Sequence[Result]]) -> str:
    """Markdown: every point, then exponents."""
    rows, exponents = [], []
    for axis, results in axes.items():
        for result in results:
            cells = [
                cell
                for phase in PHASES
                for cell in (
                    f"{result['seconds'][phase]:.2f}",
                    f"{result['peak_bytes'][phase] / 1e9:.2f}",
                    f"{utilisation(result, phase):.2f}",
                )
            ]
            rows.append([AXES[axis], f"{place(axis, result):.0f}", *cells])
        found = growth(axis, results).values()
        cells = [
            f"{each['time']:.2f} / {each['flops']:.2f}; {each['memory']:.2f}" for each in found
        ]
        exponents.append([AXES[axis], *cells])
    heads = [head for phase in PHASES for head in (f"{phase}, s", "GB", "of peak")]
    parts = [
        table(["axis", "value", *heads], rows),
        "Exponents of growth over each axis (time / arithmetic; memory):",
        table(["axis", *PHASES], exponents),
    ]
    return "\n\n".join(parts) + "\n"


_COLOURS = {"rollout": "#d97724", "update": "#2f6db5"}
_NAMES = {"rollout": "generation", "update": "update"}


def plot(axes: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Write the SVG; dotted: the seconds of the first point times the growth of the arithmetic."""
    with mpl.rc_context(
        {
            "svg.fonttype": "path",
            "svg.hashsalt": "lit_rlhf",
            "font.size": 9.0,
            "legend.frameon": False,
        }
    ):
        figure = Figure(figsize=(3.2 * len(axes), 7.6), layout="constrained")
        grid = figure.subplots(3, len(axes), squeeze=False, sharex="col")
        for column, (axis, results) in enumerate(axes.items()):
            _column(grid[:, column], axis, results)
        for row, name in enumerate(
            ("seconds an iteration", "peak memory, GB", "share of bf16 peak")
        ):
            grid[row, 0].set_ylabel(name)
        grid[0, 0].plot(
            [], [], color="#888888", linestyle=":", linewidth=1.0, label="growth of arithmetic"
        )
        grid[0, 0].legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _column(cells: Sequence[Axes], axis: str, results: Sequence[Result]) -> None:
    seconds, memory, share = cells
    xs = [place(axis, result) for result in results]
    for phase, colour in _COLOURS.items():
        first = results[0]
        expected = [
            first["seconds"][phase] * result["flops"][phase] / first["flops"][phase]
            for result in results
        ]
        style = {"color": colour, "marker": "o", "markersize": 3.0}
        seconds.plot(
            xs, [result["seconds"][phase] for result in results], label=_NAMES[phase], **style
        )
        seconds.plot(xs, expected, color=colour, linestyle=":", linewidth=1.0)
        memory.plot(xs, [result["peak_bytes"][phase] / 1e9 for result in results], **style)
        share.plot(xs, [utilisation(result, phase) for result in results], **style)
    seconds.set_yscale("log")
    seconds.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    seconds.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    seconds.yaxis.set_minor_formatter(NullFormatter())
    seconds.set_xscale("log", base=2)
    memory.set_ylim(bottom=0)
    share.set_ylim(0, 1)
    share.set_xticks(xs, [f"{x:.0f}" for x in xs])
    share.set_xlabel(AXES[axis])
    for cell in cells:
        cell.grid(color="#e8eaee")
        cell.spines[["top", "right"]].set_visible(False)
