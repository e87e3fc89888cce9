"""The pages of the documentation, and their blocks."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    title: str | None  # the file that it is to be saved as
    text: str


def text_of(page: str) -> str:
    """A page as written."""
    return (DOCS / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    """Its fenced blocks, in order."""
    return [Block(*found) for found in _BLOCK.findall(text_of(page))]


def logged_names(page: str) -> set[str]:
    """The metrics that a page's tables name in their first column."""
    rows = re.findall(r"^\| (`[^|]*) \|", text_of(page), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
