"""Cost against each axis, as one SVG: seconds beside the arithmetic, memory, utilisation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.comparison.growth import AXES, Result, place, utilisation

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
        FigureCanvasSVG(figure)
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
