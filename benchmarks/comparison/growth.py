"""How cost grows: which points are measured, and how time and memory grow beside the arithmetic."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

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
    found = {}
    for phase in PHASES:
        steps = list(pairwise(results))
        time = [_exponent(axis, a, b, a["seconds"][phase], b["seconds"][phase]) for a, b in steps]
        flops = [_exponent(axis, a, b, a["flops"][phase], b["flops"][phase]) for a, b in steps]
        first, last = results[0], results[-1]
        found[phase] = {
            "time": _exponent(axis, first, last, first["seconds"][phase], last["seconds"][phase]),
            "flops": _exponent(axis, first, last, first["flops"][phase], last["flops"][phase]),
            "memory": _exponent(
                axis, first, last, first["peak_bytes"][phase], last["peak_bytes"][phase]
            ),
            "excess": max(a - b for a, b in zip(time, flops, strict=True)),
        }
    return found


def table(axes: Mapping[str, Sequence[Result]]) -> str:
    """Markdown: every point, then exponents."""
    lines = [
        "| axis | value | " + " | ".join(f"{phase}, s | GB | of peak" for phase in PHASES) + " |",
        "|" + " --- |" * (2 + 3 * len(PHASES)),
    ]
    for axis, results in axes.items():
        for result in results:
            cells = [
                f"{result['seconds'][phase]:.2f} | {result['peak_bytes'][phase] / 1e9:.2f} | "
                f"{utilisation(result, phase):.2f}"
                for phase in PHASES
            ]
            lines.append(f"| {AXES[axis]} | {place(axis, result):.0f} | {' | '.join(cells)} |")
    lines += ["", "Exponents of growth over each axis (time / arithmetic; memory):", ""]
    lines += ["| axis | " + " | ".join(PHASES) + " |", "|" + " --- |" * (1 + len(PHASES))]
    for axis, results in axes.items():
        found = growth(axis, results)
        cells = [
            f"{found[p]['time']:.2f} / {found[p]['flops']:.2f}; {found[p]['memory']:.2f}"
            for p in PHASES
        ]
        lines.append(f"| {AXES[axis]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _exponent(axis: str, a: Result, b: Result, before: float, after: float) -> float:
    return math.log(after / before) / math.log(place(axis, b) / place(axis, a))
