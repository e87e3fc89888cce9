"""The report's plots, as SVG text."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#2f6db5", "#d97724", "#2c8a57", "#8a8f98"
_SIZE = (5.6, 3.4)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",  # looks the same wherever it is opened
    "svg.hashsalt": "lit_rlhf",  # the same ids for the same data
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#b9bec7",
    "axes.labelcolor": "#3b4252",
    "xtick.color": "#5b6371",
    "ytick.color": "#5b6371",
    "axes.grid": True,
    "grid.color": "#e8eaee",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def reward_and_kl(proxy: Sequence[float], kl: Sequence[float]) -> str:
    """Proxy reward and KL over iterations, one above the other."""
    with _canvas(rows=2) as (axes, result):
        top, bottom = axes
        _curve(top, proxy, BLUE, "reward-model score")
        _curve(bottom, kl, ORANGE, "KL to initial policy, nats")
        bottom.set_xlabel("iteration")
        bottom.set_ylim(bottom=0)
    return result[0]


def gold_and_proxy(gold: Sequence[float], proxy: Sequence[float], gold_max: float) -> str:
    """The true utility and what the reward model takes it for, over iterations, on two scales."""
    with _canvas() as (axes, result):
        left = axes[0]
        right = left.twinx()
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
        left.axhline(gold_max, color=GREEN, linestyle=":", linewidth=1.4)
        left.text(1, gold_max, "best reachable", color=GREEN, va="bottom", fontsize=8.5)
        _curve(left, gold, GREEN, "gold: true utility")
        _curve(right, proxy, BLUE, "proxy: reward-model score")
        left.set_xlabel("iteration")
        left.set_ylim(top=gold_max + 0.1 * (gold_max - min(gold)))
        for axis, color in ((left, GREEN), (right, BLUE)):
            axis.yaxis.label.set_color(color)
    return result[0]


def gold_against_proxy(points: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> str:
    """Each sample's true utility against its score: where they part, the proxy misleads.

    Args:
        points: (label, proxy, gold) of the groups of samples.
    """
    with _canvas() as (axes, result):
        for (label, proxy, gold), color in zip(points, (GREY, BLUE), strict=False):
            axes[0].scatter(proxy, gold, s=9, color=color, alpha=0.45, linewidths=0, label=label)
        axes[0].set_xlabel("proxy: reward-model score")
        axes[0].set_ylabel("gold: true utility")
        axes[0].legend(loc="upper left", markerscale=2)
    return result[0]


def calibration(bins: Sequence[tuple[float, float, int]]) -> str:
    """Share of raters who agree with the reward model, against how sure it is; dots as large as there are pairs."""
    with _canvas() as (axes, result):
        axis = axes[0]
        axis.plot([0.5, 1], [0.5, 1], color=GREY, linestyle=":", linewidth=1.4)
        total = sum(count for _, _, count in bins)
        confidence, agreement, counts = zip(*bins, strict=True)
        axis.plot(confidence, agreement, color=BLUE, linewidth=1.2)
        axis.scatter(
            confidence,
            agreement,
            s=[25 + 600 * count / total for count in counts],
            color=BLUE,
            alpha=0.75,
        )
        axis.set_xlim(0.48, 1.02)
        axis.set_xlabel("confidence of the reward model: sigmoid of |score difference|")
        axis.set_ylabel("share of raters who agree")
    return result[0]


def _curve(axis: Axes, values: Sequence[float], color: str, label: str) -> None:
    steps = range(1, len(values) + 1)
    axis.plot(steps, values, color=color, alpha=0.3, linewidth=1.0)
    axis.plot(steps, _smooth(values), color=color)
    axis.set_ylabel(label)


def _smooth(values: Sequence[float], window: int = 5) -> list[float]:
    return [
        fmean(values[max(0, i - window // 2) : i + window // 2 + 1]) for i in range(len(values))
    ]


@contextmanager
def _canvas(rows: int = 1) -> Iterator[tuple[list[Axes], list[str]]]:
    result: list[str] = []
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
        for upper in axes[:-1]:
            upper.tick_params(labelbottom=False)
        yield axes, result
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
        result.append(re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL))
