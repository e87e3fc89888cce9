"""The page: blocks, sections, and one file of HTML with everything in it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from lit_rlhf import __version__
from lit_rlhf.callbacks.records import plain_json
from lit_rlhf.files import write_text
from lit_rlhf.report.vega import Plot

_SCRIPTS = ("vega-6.4.0.min.js", "vega-lite-6.4.3.min.js", "page.js")
Cell = str | float | int | bool | None


@dataclass(frozen=True)
class Figures:
    """Plots side by side, below each other where there is no room.

    Attributes:
        plots: In the order of reading.
    """

    kind: ClassVar[str] = "figures"
    plots: Sequence[Plot]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: Heads.
        rows: Cells; numbers are rounded to four digits and aligned, None is a dash.
        caption: Above it.
        marked: Numbers of the rows that carry a sign in front.
        mark: What the sign means.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    marked: frozenset[int] = frozenset()
    mark: str = "differs"


@dataclass(frozen=True)
class Numbers:
    """The few numbers that matter, large.

    Attributes:
        items: (value, label) of each.
    """

    kind: ClassVar[str] = "numbers"
    items: Sequence[tuple[Cell, str]]


@dataclass(frozen=True)
class Sample:
    """Texts that belong together.

    Attributes:
        texts: (label, text), such as ("prompt", ...) and ("chosen", ...).
        facts: Short values in a line above: score, iteration, reason.
        title: In bold.
    """

    texts: Sequence[tuple[str, str]]
    facts: Mapping[str, Cell] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Samples:
    """Texts to read; shown as written, whatever is in them.

    Attributes:
        samples: The texts.
        caption: A sentence above them.
        shown: How many are open; the others are folded away.
    """

    kind: ClassVar[str] = "samples"
    samples: Sequence[Sample]
    caption: str = ""
    shown: int = 6


@dataclass(frozen=True)
class Code:
    """A command or a file's text.

    Attributes:
        text: As it stands.
        label: What it is.
        folded: Whether it is hidden behind its label, where it is long.
    """

    kind: ClassVar[str] = "code"
    text: str
    label: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Note:
    """What a reader must not miss.

    Attributes:
        text: A sentence.
        bad: Whether something went wrong.
    """

    kind: ClassVar[str] = "note"
    text: str
    bad: bool = False


Block = Figures | Table | Numbers | Samples | Code | Note


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: Its heading.
        blocks: What stands in it.
        text: A sentence or two below the heading.
    """

    title: str
    blocks: Sequence[Block] = ()
    text: str = ""


def page(title: str, sections: Sequence[Section | None], lead: str = "") -> str:
    """A page as one file of HTML, which fetches nothing.

    Args:
        title: Of the page.
        sections: From top to bottom; None is left out.
        lead: A sentence below the title.
    """
    there = [section for section in sections if section is not None]
    values = {"title": title, "lead": lead, "sections": there, "version": __version__}
    scripts = [Markup(_static(name)) for name in _SCRIPTS]  # noqa: S704  (our own files)
    style = Markup(_static("page.css"))  # noqa: S704
    return _template().render(**values, scripts=scripts, style=style)


def write_page(
    path: Path,
    title: str,
    sections: Sequence[Section | None],
    lead: str = "",
    data: Mapping[str, Any] | None = None,
) -> Path:
    """Write a page, and its numbers as JSON beside it: `report.html`, `report.json`.

    Args:
        path: The HTML file.
        title: Of the page.
        sections: From top to bottom; None is left out.
        lead: A sentence below the title.
        data: What the JSON holds. None: the plots' numbers by section and title.

    Returns:
        The HTML file.

    Raises:
        FileError: A file can't be written.
    """
    if data is None:
        data = {
            section.title: {
                plot.title: plot.values
                for block in section.blocks
                if isinstance(block, Figures)
                for plot in block.plots
            }
            for section in sections
            if section is not None
        }
    # Half a character, which JSON may hold, is in no encoding.
    text = page(title, sections, lead).encode(errors="replace").decode()
    write_text(path, text, "The report")
    numbers = json.dumps(plain_json(data), indent=1, ensure_ascii=False, allow_nan=False)
    numbers = numbers.encode(errors="backslashreplace").decode()
    write_text(path.with_suffix(".json"), numbers + "\n", "The report's numbers")
    return path


def format_cell(value: Cell) -> str:
    """A value for people: four digits of a number, a dash for nothing.

    Example:
        >>> [format_cell(value) for value in (None, True, 12345, 0.123456, 1e-7, 2.0, "a")]
        ['–', 'true', '12,345', '0.1235', '1e-07', '2', 'a']
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return value


def with_error(value: float | None, error: float | None) -> Cell:
    """A value, and behind it how far it can be trusted where that is known."""
    if value is None or error is None:
        return value
    return f"{value:.4g}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{error:.2g}"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("lit_rlhf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": format_cell, "plain": plain_json}
    environment.tests["numeric"] = lambda value: (
        value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    )
    return environment.get_template("page.html.j2")


@cache
def _static(name: str) -> str:
    return (files("lit_rlhf.report") / "static" / name).read_text(encoding="utf-8")
