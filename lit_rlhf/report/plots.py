"""Plots as Vega-Lite specifications, which the page draws: hovering, light and dark, any width.

Colours are the page's variables, so that both themes have theirs. No plot relies on them: series have dashes, groups
have marks. Points of a long series are thinned to the least and greatest of each stretch.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_DASHES = ([1, 0], [7, 3], [2, 2], [10, 3, 2, 3], [5, 2], [1, 3], [12, 4], [4, 4])
_COLORS = [f"var(--c{number + 1})" for number in range(len(_DASHES))]
_SHAPES = [
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "stroke",
    "wedge",
]
_MOST_POINTS = 1000
_FEW_POINTS = 25
_SMOOTH_FROM = 30

Number = float | int | None


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        name: In the legend.
        x: Positions.
        y: Values; None leaves a gap.
        low: Lower ends of a band around the curve; empty: no band.
        high: Upper ends.
    """

    name: str
    x: Sequence[float]
    y: Sequence[Number]
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()


@dataclass(frozen=True)
class Interval:
    """A value with an interval, such as an accuracy with its 95 % confidence interval."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Plot:
    """A plot of a page.

    Attributes:
        title: In bold above it.
        spec: Vega-Lite.
        caption: What it shows and how to read it.
        values: Its numbers, for the JSON beside the page.
    """

    title: str
    spec: Mapping[str, Any]
    caption: str = ""
    values: Any = field(default=None, repr=False)


def line_plot(
    title: str,
    series: Sequence[Series],
    *,
    x: str = "iteration",
    y: str = "",
    caption: str = "",
    zero: bool = False,
    levels: Mapping[str, float] | None = None,
) -> Plot:
    """Curves over one axis; long ones are thin, with their mean over a twentieth of them drawn thick.

    Args:
        title: Of the plot.
        series: The curves; hovering shows all of them at one position.
        x: What the positions are.
        y: What the values are, with their unit.
        caption: How to read it.
        zero: Whether the axis of values begins at zero.
        levels: Horizontal lines by name, such as the best that can be reached.
    """
    rows = [row for number, one in enumerate(series) for row in _points(one, number)]
    longest = max((len(one.x) for one in series), default=0)
    has_band = any(one.low for one in series)
    smooth = [one.name for one in series if len(one.x) >= _SMOOTH_FROM and not has_band]
    names = [one.name for one in series]
    axis_x = {
        "field": "x",
        "type": "quantitative",
        "title": x,
        "scale": {"nice": False, "zero": False},
    }
    axis_y = {"field": "y", "type": "quantitative", "title": y or None, "scale": {"zero": zero}}
    looks = _looks(names, dash=True)
    layers: list[dict[str, Any]] = []
    if has_band:
        band = {"mark": {"type": "area", "opacity": 0.18}}
        ends = {"y": {**axis_y, "field": "low"}, "y2": {"field": "high"}}
        layers.append(band | {"encoding": ends | {"color": looks["color"]}})
    plain: dict[str, Any] = {"type": "line", "strokeWidth": 1.8}
    if min((len(one.x) for one in series), default=0) <= _FEW_POINTS:
        plain["point"] = {"size": 28}
    is_smooth: dict[str, Any] = {"field": "s", "oneOf": smooth}
    if len(smooth) < len(series):
        few = [{"filter": {"not": is_smooth}}]
        layers.append({"transform": few, "mark": plain, "encoding": {"y": axis_y} | looks})
    if smooth:
        reach = max(longest // 40, 1)
        mean = {"window": [{"op": "mean", "field": "y", "as": "mean"}], "frame": [-reach, reach]}
        thin, thick = (
            {"type": "line", "opacity": 0.3, "strokeWidth": 1},
            {"type": "line", "strokeWidth": 2.2},
        )
        over = {"y": {**axis_y, "field": "mean"}} | looks
        long = {"filter": is_smooth}
        layers.append({"transform": [long], "mark": thin, "encoding": {"y": axis_y} | looks})
        averaged = [long, mean | {"groupby": ["s"]}]
        layers.append({"transform": averaged, "mark": thick, "encoding": over})
    layers += _hovering(names, x)
    layers += [_level(name, value) for name, value in (levels or {}).items()]
    spec = {"data": {"values": rows}, "encoding": {"x": axis_x}, "layer": layers}
    values = {one.name: {"x": list(one.x), "y": list(one.y)} for one in series}
    return Plot(title, spec, caption, values)


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
        "x": {"field": "x", "type": "quantitative", "title": x, "scale": {"zero": False}},
        "y": {"field": "y", "type": "quantitative", "title": y, "scale": {"zero": False}},
        "tooltip": _tips(("s", "group", "") if len(groups) > 1 else None, ("x", x), ("y", y)),
        **_looks(list(groups), dash=False),
    }
    mark = {"type": "point", "size": 34, "opacity": 0.7, "strokeWidth": 1.4}
    values = {name: {"x": list(xs), "y": list(ys)} for name, (xs, ys) in groups.items()}
    return Plot(
        title, {"data": {"values": rows}, "mark": mark, "encoding": encoding}, caption, values
    )


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
        bins: Number of bars.
        caption: How to read it.
    """
    finite = {
        name: {value: count for value, count in Counter(values).items() if math.isfinite(value)}
        for name, values in groups.items()
    }
    every = [value for values in finite.values() for value in values]
    low, high = (min(every), max(every)) if every else (0.0, 1.0)
    width = (high - low) / bins or 1.0
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
                "to": edge + width,
                "y": count,
                "share": count / total,
                "s": name,
            }
            for edge, count in edges
        ]
    encoding = {
        "x": {
            "field": "x",
            "type": "quantitative",
            "title": x,
            "scale": {"zero": False, "nice": False},
        },
        "y": {
            "field": "y",
            "type": "quantitative",
            "title": "count",
            "scale": {"domainMin": 0},  # Vega-Lite makes room below bars on a continuous axis
        },
        **_looks(list(groups), dash=True),
    }
    tips = _tips(
        ("s", "group", ""), ("x", "from"), ("to", "to"), ("y", "count"), ("share", "share", ".1%")
    )
    bar = {"x2": {"field": "to"}, "tooltip": tips, "y": {**encoding["y"], "stack": None}}
    layers = [
        {"mark": {"type": "area", "interpolate": "step-after", "line": True, "fillOpacity": 0.15}}
        | {"encoding": {"y": {**encoding["y"], "stack": None}}},
        {"mark": {"type": "bar", "opacity": 0}, "encoding": bar},
    ]
    return Plot(
        title, {"data": {"values": rows}, "encoding": encoding, "layer": layers}, caption, counted
    )


def bar_plot(title: str, bars: Mapping[str, float], *, x: str = "rows", caption: str = "") -> Plot:
    """Lengths by name, in the given order.

    Args:
        title: Of the plot.
        bars: Values by name.
        x: What the values are.
        caption: How to read it.
    """
    rows = [{"name": name, "x": value} for name, value in bars.items()]
    encoding = {
        "y": {"field": "name", "type": "nominal", "sort": None, "title": None},
        "x": {"field": "x", "type": "quantitative", "title": x},
        "tooltip": _tips(("name", "name", ""), ("x", x)),
    }
    spec = {
        "data": {"values": rows},
        "mark": {"type": "bar", "color": _COLORS[0]},
        "encoding": encoding,
    }
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
        "x": {"field": "x", "type": "quantitative", "title": x, "scale": {"domain": domain}},
        "y": {"field": "y", "type": "quantitative", "title": y, "scale": {"zero": False}},
        **_looks(list(groups), dash=True),
    }
    sized = {
        "size": {
            "field": "n",
            "type": "quantitative",
            "legend": None,
            "scale": {"range": [20, 320]},
        },
        "tooltip": _tips(("s", "group", ""), ("x", x), ("y", y), ("n", "predictions", ",d")),
    }
    ends = {"values": [{"x": end, "y": end} for end in domain]}
    layers = [
        {"data": ends, "mark": {"type": "line", "strokeDash": [2, 3], "color": "var(--soft)"}}
        | {"encoding": {"color": {}, "strokeDash": {}}},
        {"mark": {"type": "line", "strokeWidth": 1.4}},
        {"mark": {"type": "point", "filled": True, "opacity": 0.8}, "encoding": sized},
    ]
    return Plot(
        title,
        {"data": {"values": rows}, "encoding": encoding, "layer": layers},
        caption,
        dict(groups),
    )


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
    tips = _tips(("name", "name", ""), ("value", x), ("low", "from"), ("high", "to"))
    encoding = {
        "y": {"field": "name", "type": "nominal", "sort": None, "title": None},
        "tooltip": tips,
    }
    along = {"type": "quantitative", "title": x, "scale": {"zero": False}}
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "rule", "strokeWidth": 2, "color": _COLORS[0]}}
        | {"encoding": {"x": {**along, "field": "low"}, "x2": {"field": "high"}}},
        {"mark": {"type": "point", "filled": True, "size": 60, "color": _COLORS[0]}}
        | {"encoding": {"x": {**along, "field": "value"}}},
    ]
    if level is not None:
        line = {"type": "rule", "strokeDash": [2, 3], "color": "var(--soft)"}
        layers.append(
            {"mark": line, "encoding": {"x": {"datum": level}, "y": None, "tooltip": None}}
        )
    spec = {"data": {"values": rows}, "encoding": encoding, "layer": layers}
    return Plot(title, spec | {"height": max(28 * len(rows), 56)}, caption, rows)


def _points(series: Series, number: int) -> list[dict[str, Any]]:
    """Rows of a curve; of more than a thousand points the least and greatest of each stretch."""
    rows: list[dict[str, Any]] = [
        {"x": x, "y": y if y is not None and math.isfinite(y) else None, "s": series.name}
        | {"k": f"s{number}"}
        | ({"low": series.low[i], "high": series.high[i]} if series.low else {})
        for i, (x, y) in enumerate(zip(series.x, series.y, strict=True))
    ]
    if len(rows) <= _MOST_POINTS:
        return rows
    kept = []
    for i in range(_MOST_POINTS // 2):
        stretch = rows[i * len(rows) * 2 // _MOST_POINTS : (i + 1) * len(rows) * 2 // _MOST_POINTS]
        known = [row for row in stretch if row["y"] is not None] or stretch[:1]
        ends = {
            id(row): row for pick in (min, max) for row in [pick(known, key=lambda r: r["y"] or 0)]
        }
        kept += sorted(ends.values(), key=lambda row: float(row["x"]))
    return kept


def _color(names: Sequence[str]) -> dict[str, Any]:
    scale = {"domain": list(names), "range": [_COLORS[i % len(_COLORS)] for i in range(len(names))]}
    legend = {} if len(names) > 1 else {"legend": None}
    return {"field": "s", "type": "nominal", "title": None, "scale": scale} | legend


def _looks(names: Sequence[str], *, dash: bool) -> dict[str, Any]:
    """Colour, and dash or mark, by series."""
    channel, looks = ("strokeDash", _DASHES) if dash else ("shape", _SHAPES)
    other = _color(names)
    if dash and len(names) > 1:
        other["legend"] = {"symbolType": "stroke", "symbolOpacity": 1}
    scale = {"domain": list(names), "range": [looks[i % len(looks)] for i in range(len(names))]}
    return {"color": other, channel: {**other, "scale": scale}}


def _hovering(names: Sequence[str], x: str) -> list[dict[str, Any]]:
    """A line at the position nearest to the pointer, with the values of all series there."""
    near = {"type": "point", "on": "pointermove", "clear": "pointerout", "nearest": True}
    return [
        {
            "transform": [{"pivot": "k", "value": "y", "groupby": ["x"]}],
            "mark": {"type": "rule", "color": "var(--soft)"},
            "params": [{"name": "near", "select": {**near, "encodings": ["x"]}}],
            "encoding": {
                "opacity": {
                    "condition": {"param": "near", "empty": False, "value": 0.6},
                    "value": 0,
                },
                "tooltip": _tips(("x", x, ""), *((f"s{i}", name) for i, name in enumerate(names))),
            },
        }
    ]


def _level(name: str, value: float) -> dict[str, Any]:
    row = {"data": {"values": [{"level": value, "name": name}]}}
    y = {"y": {"field": "level", "type": "quantitative"}}
    rule = {"mark": {"type": "rule", "strokeDash": [2, 3], "color": "var(--soft)"}, "encoding": y}
    text = {"type": "text", "align": "left", "baseline": "bottom", "dx": 4, "color": "var(--soft)"}
    told = {"mark": text, "encoding": y | {"x": {"value": 0}, "text": {"field": "name"}}}
    return row | {"encoding": {"x": None}, "layer": [rule, told]}


def _tips(*fields: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """Lines of a tooltip: (field, title) or (field, title, format)."""
    lines = []
    for given in fields:
        if given is not None:
            name, title, form = (*given, ".4~g")[:3]
            line = {"field": name, "title": title or name}
            lines.append(line | ({"type": "quantitative", "format": form} if form else {}))
    return lines
