"""Two real processes under DDP see what one process with twice the batch sees, before and after a resume."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.unit.data.two_processes import make

ROOT = Path(__file__).parents[3]


def read(directory: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((directory / f"{name}{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.ddp
def test_two_processes(tmp_path: Path) -> None:
    command = [warm.python(), "-m", "tests.unit.data.two_processes", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]

    one = make(4, str(tmp_path / "cache"))
    one.prepare_data()
    one.setup("fit")
    loader = one.train_dataloader()
    expected = [set(batch["index"].tolist()) for _ in range(2) for batch in loader]

    left, right = read(tmp_path, "injecting")
    for mine, theirs, whole in zip(left["seen"], right["seen"], expected, strict=True):
        assert mine[:2] == theirs[:2]
        assert set(mine[2]).isdisjoint(theirs[2])
        assert set(mine[2]) | set(theirs[2]) == whole
    for epoch in range(2):  # nine rows, uneven for two processes: each once
        rows = left["evaluated"][epoch * 5 :][:5] + right["evaluated"][epoch * 4 :][:4]
        assert sorted(rows) == list(range(9))
    assert read(tmp_path, "leaving") == [left, right]
    assert [rank["seen"] for rank in read(tmp_path, "resumed")] == [
        rank["seen"][3:] for rank in (left, right)
    ]
    assert [json.loads((tmp_path / f"by_hand{rank}.json").read_text()) for rank in range(2)] == [
        [rows for epoch, _, rows in rank["seen"] if epoch == 0] for rank in (left, right)
    ]
    refused = (tmp_path / "undivided.txt").read_text()
    assert "a loader whose rows are not divided among the 2 processes" in refused
