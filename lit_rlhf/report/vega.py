"""What plots are made of as Vega-Lite specifications, which the page draws: hovering, light and dark, any width.

Colours are the page's variables, so that both themes have theirs. No plot relies on them: series have dashes, groups
have marks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_DASHES = ([1, 0], [7, 3], [2, 2], [10, 3, 2, 3], [5, 2], [1, 3], [12, 4], [4, 4])
COLORS = [f"var(--c{number + 1})" for number in range(len(_DASHES))]
_SHAPES = [
    *("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke", "wedge")
]
BY_NAME = {"y": {"field": "name", "type": "nominal", "sort": None, "title": None}}
"""One below the other, each with its name, in the given order."""


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


_SHORT = 14  # characters of a name of which two fit beside each other in a narrow plot


def looks(names: Sequence[str], *, dash: bool) -> dict[str, Any]:
    """Colour, and dash or mark, by series."""
    domain, count = list(names), range(len(names))
    scale = {"domain": domain, "range": [COLORS[i % len(COLORS)] for i in count]}
    color: dict[str, Any] = {"field": "s", "type": "nominal", "title": None}
    color |= {"scale": scale, "legend": None}
    if len(names) > 1:
        stroke = {"symbolType": "stroke", "symbolOpacity": 1} if dash else {}
        one_below_another = {"columns": 1} if max(map(len, names)) > _SHORT else {}
        color["legend"] = stroke | one_below_another
    channel, own = ("strokeDash", _DASHES) if dash else ("shape", _SHAPES)
    marks = [own[i % len(own)] for i in count]
    return {"color": color, channel: {**color, "scale": {"domain": domain, "range": marks}}}


def numbers(field: str, title: str | None, **scale: Any) -> dict[str, Any]:
    """An axis of numbers, with what is said of its scale."""
    axis: dict[str, Any] = {"field": field, "type": "quantitative", "title": title}
    return {**axis, "scale": scale} if scale else axis


def tips(*fields: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """Lines of a tooltip: (field, title) or (field, title, format)."""
    lines = []
    for given in fields:
        if given is not None:
            name, title, form = (*given, ".4~g")[:3]
            line = {"field": name, "title": title or name}
            lines.append(line | ({"type": "quantitative", "format": form} if form else {}))
    return lines
