"""The site: every package is in its reference, and it opens from disk without a network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, text_of

PRIVATE = {"cli", "demo", "internals", "testing"}
"""Packages without names for other people's code, or listed with the records."""


def test_every_package_is_in_the_reference() -> None:
    packages = {path.parent.name for path in (ROOT / "lit_rlhf").glob("*/__init__.py")}
    wanted = {f"lit_rlhf.{name}" for name in packages - PRIVATE}
    found = {
        name
        for page in PAGES
        if page.startswith("api/")
        for name in re.findall(r"^::: (\S+)", text_of(page), re.MULTILINE)
    }
    assert not wanted - found


@pytest.mark.docs
def test_it_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the docs extra")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")}
    assert len(pages) > len(PAGES) // 2
    fetched = re.compile(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(?:https?:)?//[^"]*"')
    assert not {
        path.name: found for path, text in pages.items() if (found := fetched.findall(text))
    }
    css = "".join(p.read_text(encoding="utf-8") for p in (tmp_path / "site").rglob("*.css"))
    assert "url(http" not in css and "@import" not in css
    assert "arithmatex" not in "".join(pages.values())  # every formula became MathML
    losses = (tmp_path / "site/api/objectives.html").read_text(encoding="utf-8")
    assert 'id="lit_rlhf.objectives.DPO"' in losses
    assert "&gt;&gt;&gt;" in losses and "<blockquote>" not in losses  # doctests as code
