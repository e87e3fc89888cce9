"""Prose of pages has lines of at most 120 columns."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT

WIDTH = 120
FILES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


def prose(text: str) -> Iterator[str]:
    """Lines outside fences and tables that could be broken."""
    for line in re.sub(
        r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.MULTILINE
    ).splitlines():
        if not line.lstrip().startswith(("|", "#")) and " " in line.strip().lstrip("-*> "):
            yield line


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_lines_are_short(path: Path) -> None:
    long = [line for line in prose(path.read_text(encoding="utf-8")) if len(line) > WIDTH]
    assert not long, (
        f"{len(long)} lines of {path.name} are over {WIDTH} columns, the first: {long[0]}"
    )
