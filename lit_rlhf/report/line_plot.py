"""Curves over one axis. Points of a long one are thinned to the least and greatest of each stretch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_rlhf.report.vega import Plot, looks, numbers, tips

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
    axis_x = numbers("x", x, nice=False, zero=False)
    if all(float(value).is_integer() for one in series for value in one.x):
        axis_x["axis"] = {"tickMinStep": 1}  # no iteration 1.2
    axis_y = numbers("y", y or None, zero=zero)
    if len({value for one in series for value in one.y}) == 1:
        axis_y["axis"] = {"format": ",.4~g"}  # the only tick there is
    look = looks(names, dash=True)
    layers: list[dict[str, Any]] = []
    if has_band:
        band = {"mark": {"type": "area", "opacity": 0.18}}
        ends = {"y": {**axis_y, "field": "low"}, "y2": {"field": "high"}}
        layers.append(band | {"encoding": ends | {"color": look["color"]}})
    plain: dict[str, Any] = {"type": "line", "strokeWidth": 1.8}
    if min((len(one.x) for one in series), default=0) <= _FEW_POINTS:
        plain["point"] = {"size": 28}
    is_smooth: dict[str, Any] = {"field": "s", "oneOf": smooth}
    if len(smooth) < len(series):
        few = [{"filter": {"not": is_smooth}}]
        layers.append({"transform": few, "mark": plain, "encoding": {"y": axis_y} | look})
    if smooth:
        reach = max(longest // 40, 1)
        mean = {"window": [{"op": "mean", "field": "y", "as": "mean"}], "frame": [-reach, reach]}
        thin = {"type": "line", "opacity": 0.3, "strokeWidth": 1}
        thick = {"type": "line", "strokeWidth": 2.2}
        over = {"y": {**axis_y, "field": "mean"}} | look
        long = {"filter": is_smooth}
        layers.append({"transform": [long], "mark": thin, "encoding": {"y": axis_y} | look})
        averaged = [long, mean | {"groupby": ["s"]}]
        layers.append({"transform": averaged, "mark": thick, "encoding": over})
    layers.append(_hovering(names, x))
    if levels:
        layers.append(_across(levels))
    spec = {"data": {"values": rows}, "encoding": {"x": axis_x}, "layer": layers}
    values = {one.name: {"x": list(one.x), "y": list(one.y)} for one in series}
    return Plot(title, spec, caption, values)


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


def _hovering(names: Sequence[str], x: str) -> dict[str, Any]:
    """A line at the position nearest to the pointer, with the values of all series there."""
    near = {"type": "point", "on": "pointermove", "clear": "pointerout", "nearest": True}
    shown = {"param": "near", "empty": False, "value": 0.6}
    values = ((f"s{i}", name) for i, name in enumerate(names))
    return {
        "transform": [{"pivot": "k", "value": "y", "groupby": ["x"]}],
        "mark": {"type": "rule", "color": "var(--soft)"},
        "params": [{"name": "near", "select": {**near, "encodings": ["x"]}}],
        "encoding": {
            "opacity": {"condition": shown, "value": 0},
            "tooltip": tips(("x", x, ""), *values),
        },
    }


def _across(levels: Mapping[str, float]) -> dict[str, Any]:
    """Horizontal lines, each with its name."""
    rows = [{"level": level, "name": name} for name, level in levels.items()]
    soft = {"color": "var(--soft)"}
    height = {"y": {"field": "level", "type": "quantitative"}}
    rule = {"mark": soft | {"type": "rule", "strokeDash": [2, 3]}, "encoding": height}
    text = soft | {"type": "text", "align": "left", "baseline": "bottom", "dx": 4}
    told = {"mark": text, "encoding": height | {"x": {"value": 0}, "text": {"field": "name"}}}
    return {"data": {"values": rows}, "encoding": {"x": None}, "layer": [rule, told]}
