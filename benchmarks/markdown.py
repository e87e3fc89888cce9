"""Tables in Markdown, and their place in a document."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from textwrap import wrap

WIDTH = 120
_FILL = partial(wrap, break_long_words=False, break_on_hyphens=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Heads and cells, each row a line."""
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)
    )


def spelled(values: Sequence[float], form: str = ".2f", error: str | None = None) -> str:
    """The mean, and of several values their standard deviation behind it.

    Args:
        values: At least one.
        form: Of the mean.
        error: Of the deviation; None: the same.

    Example:
        >>> spelled([0.5, 0.75], ".3f"), spelled([0.5])
        ('0.625 ± 0.177', '0.50')
    """
    deviation = f" ± {stdev(values):{error or form}}" if len(values) > 1 else ""
    return f"{fmean(values):{form}}{deviation}"


def wrapped(text: str) -> str:
    """A text whose lines of prose have at most 120 columns, as those of all pages; tables stay."""
    lines: list[str] = []
    for line in text.splitlines():
        indent = "  " if line.startswith("- ") else ""
        short = line.startswith("|") or len(line) <= WIDTH
        lines += [line] if short else _FILL(line, WIDTH, subsequent_indent=indent)
    return "\n".join(lines)


def insert(document: Path, name: str, text: str) -> None:
    """Put a text at the place of that name; a document that isn't there becomes the text."""
    place = find_place(document, name)
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(
        text if place is None else f"{place[0]}\n\n{wrapped(text.strip())}\n\n{place[1]}",
        encoding="utf-8",
    )


def find_place(document: Path, name: str) -> tuple[str, str] | None:
    """What stands up to `<!-- name:begin -->` and from `<!-- name:end -->` on, the marks included.

    None if the document isn't there.

    Raises:
        ValueError: The document has no such place.
    """
    if not document.is_file():
        return None
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = document.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(
            f"{document} needs one line {begin} and after it one line {end}, between which tables go."
        )
    return text.split(begin)[0] + begin, end + text.split(end)[1]
