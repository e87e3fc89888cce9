"""Notebooks run from top to bottom, in fast form, and show progress where there are no widgets."""

import os
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_stored_without_outputs_and_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert '"outputs": []' in text and '"output_type"' not in text
    assert len(text) < 20_000


@pytest.mark.docs
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs the docs extra")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("LIT_RLHF_FAST", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    book = nbformat.read(path, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources=resources).execute()
    said = "".join(str(out) for cell in book.cells for out in cell.get("outputs", ()))
    if "trainer.fit" in path.read_text(encoding="utf-8"):
        assert "iteration 2/2" in said
