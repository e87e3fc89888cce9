"""Plots of groups and single values: points, counts, bars, calibration, intervals."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_rlhf.report.vega import BY_NAME, COLORS, Plot, looks, numbers, tips


@dataclass(frozen=True)
class Interval:
    """A value with an interval, such as an accuracy with its 95 % confidence interval.

    Attributes:
        name: What it is of.
        value: The value.
        low: Lower end.
        high: Upper end.
    """

    name: str
    value: float
    low: float
    high: float


def scatter_plot(
    title: str,
    groups: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    caption: str = "",
) -> Plot:
    """Points by group, each group with a mark of its own.

    Args:
        title: Of the plot.
        groups: Positions and values by name.
        x: What the positions are.
        y: What the values are.
        caption: How to read it.
    """
    rows = [
        {"x": one, "y": other, "s": name}
        for name, (xs, ys) in groups.items()
        for one, other in zip(xs, ys, strict=True)
    ]
    encoding = {
        "x": numbers("x", x, zero=False),
        "y": numbers("y", y, zero=False),
        "tooltip": tips(("s", "group", "") if len(groups) > 1 else None, ("x", x), ("y", y)),
        **looks(list(groups), dash=False),
    }
    mark = {"type": "point", "size": 34, "opacity": 0.7, "strokeWidth": 1.4}
    values = {name: {"x": list(xs), "y": list(ys)} for name, (xs, ys) in groups.items()}
    spec = {"data": {"values": rows}, "mark": mark, "encoding": encoding}
    return Plot(title, spec, caption, values)


def histogram(
    title: str,
    groups: Mapping[str, Sequence[float] | Mapping[float, int]],
    *,
    x: str,
    bins: int = 30,
    caption: str = "",
) -> Plot:
    """How often values occur, as the outline of bars of equal width: several groups lie over each other.

    Args:
        title: Of the plot.
        groups: Values by name, or how often each value occurs; what isn't finite is left out.
        x: What the values are.
        bins: Number of bars; at most as many where all values are whole, so that each bar holds as many of them.
        caption: How to read it.
    """
    finite = {
        name: {value: count for value, count in Counter(values).items() if math.isfinite(value)}
        for name, values in groups.items()
    }
    every = [value for values in finite.values() for value in values]
    low, high = (min(every), max(every)) if every else (0.0, 1.0)
    if low == high:  # one bar, around the one value
        low, high, bins = low - 0.5, high + 0.5, 1
    elif all(float(value).is_integer() for value in every):
        each = math.ceil((high - low + 1) / bins)
        bins = math.ceil((high - low + 1) / each)
        high = low + each * bins
    width = (high - low) / bins or 1.0  # of the smallest numbers it is 0
    rows, counted = [], {}
    for name, values in finite.items():
        counts = [0] * bins
        for value, count in values.items():
            counts[min(int((value - low) / width), bins - 1)] += count
        total = max(sum(counts), 1)
        counted[name] = {"start": low, "width": width, "counts": counts}
        edges = [(low + i * width, count) for i, count in enumerate([*counts, 0])]
        rows += [
            {
                "x": edge,
                "to": min(edge + width, high),
                "y": count,
                "share": count / total,
                "s": name,
            }
            for edge, count in edges
        ]
    encoding = {
        "x": numbers("x", x, zero=False, nice=False),
        # Vega-Lite makes room below bars on a continuous axis, and puts groups on top of each other.
        "y": {**numbers("y", "count", domainMin=0), "stack": None},
        **looks(list(groups), dash=True),
    }
    lines = tips(
        ("s", "group", ""), ("x", "from"), ("to", "to"), ("y", "count"), ("share", "share", ".1%")
    )
    outline = {"type": "area", "interpolate": "step-after", "line": True, "fillOpacity": 0.15}
    bar = {"x2": {"field": "to"}, "tooltip": lines}
    layers = [{"mark": outline}, {"mark": {"type": "bar", "opacity": 0}, "encoding": bar}]
    spec = {"data": {"values": rows}, "encoding": encoding, "layer": layers}
    return Plot(title, spec, caption, counted)


def bar_plot(title: str, bars: Mapping[str, float], *, x: str = "rows", caption: str = "") -> Plot:
    """Lengths by name, in the given order.

    Args:
        title: Of the plot.
        bars: Values by name.
        x: What the values are.
        caption: How to read it.
    """
    rows = [{"name": name, "x": value} for name, value in bars.items()]
    lines = tips(("name", "name", ""), ("x", x))
    encoding = {**BY_NAME, "x": numbers("x", x), "tooltip": lines}
    mark = {"type": "bar", "color": COLORS[0]}
    spec = {"data": {"values": rows}, "mark": mark, "encoding": encoding}
    return Plot(title, spec | {"height": max(24 * len(rows), 48)}, caption, dict(bars))


def reliability_plot(
    title: str,
    groups: Mapping[str, Sequence[tuple[float, float, int]]],
    *,
    x: str = "confidence",
    y: str = "share that agrees",
    caption: str = "",
) -> Plot:
    """How often predictions of each confidence hold; on the dotted diagonal they are calibrated.

    Args:
        title: Of the plot.
        groups: By name, for each bin: mean confidence, share that holds, number of predictions.
        x: What the confidence is.
        y: What the share is.
        caption: How to read it.
    """
    rows: list[dict[str, Any]] = [
        {"x": confidence, "y": share, "n": count, "s": name}
        for name, bins in groups.items()
        for confidence, share, count in bins
    ]
    low = min((row["x"] for row in rows), default=0.0)
    domain = [0.5 if low >= 0.5 else 0.0, 1.0]
    encoding = {
        "x": numbers("x", x, domain=domain),
        "y": numbers("y", y, zero=False),
        **looks(list(groups), dash=True),
    }
    sized = {
        "size": {**numbers("n", None, range=[20, 320]), "legend": None},
        "tooltip": tips(("s", "group", ""), ("x", x), ("y", y), ("n", "predictions", ",d")),
    }
    ends = {"values": [{"x": end, "y": end} for end in domain]}
    layers = [
        {"data": ends, "mark": {"type": "line", "strokeDash": [2, 3], "color": "var(--soft)"}}
        | {"encoding": {"color": {}, "strokeDash": {}}},
        {"mark": {"type": "line", "strokeWidth": 1.4}},
        {"mark": {"type": "point", "filled": True, "opacity": 0.8}, "encoding": sized},
    ]
    spec = {"data": {"values": rows}, "encoding": encoding, "layer": layers}
    return Plot(title, spec, caption, dict(groups))


def interval_plot(
    title: str,
    intervals: Sequence[Interval],
    *,
    x: str,
    caption: str = "",
    level: float | None = None,
) -> Plot:
    """Values with whiskers, one below the other.

    Args:
        title: Of the plot.
        intervals: From top to bottom.
        x: What the values are.
        caption: How to read it; name the kind of interval.
        level: A vertical line to compare with, such as chance.
    """
    rows = [vars(one) for one in intervals]
    lines = tips(("name", "name", ""), ("value", x), ("low", "from"), ("high", "to"))
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "rule", "strokeWidth": 2, "color": COLORS[0]}}
        | {"encoding": {"x": numbers("low", x, zero=False), "x2": {"field": "high"}}},
        {"mark": {"type": "point", "filled": True, "size": 60, "color": COLORS[0]}}
        | {"encoding": {"x": numbers("value", x, zero=False)}},
    ]
    if level is not None:
        line = {"type": "rule", "strokeDash": [2, 3], "color": "var(--soft)"}
        layers.append(
            {"mark": line, "encoding": {"x": {"datum": level}, "y": None, "tooltip": None}}
        )
    encoding = {**BY_NAME, "tooltip": lines}
    spec = {"data": {"values": rows}, "encoding": encoding, "layer": layers}
    return Plot(title, spec | {"height": max(28 * len(rows), 56)}, caption, rows)
