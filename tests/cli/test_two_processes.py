"""Two processes that Lightning starts by itself: an error of one or of both is a sentence, said once, and ends both."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_rlhf.testing import tiny_preferences, write_jsonl
from lit_rlhf.testing.tiny import write_tiny_world

ROOT = Path(__file__).parents[2]
WORDS = ["fit", "-c", "reward/lora", "-c", "overlays/tiny", "-c", "overlays/ddp"]
WORDS += ["--data.train.path", "rows.jsonl", "--data.val_fraction", "0"]


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"question": "a"}, "rows.jsonl"),  # found by the first process, which alone prepares data
        ({}, "don't fill one batch"),  # found by both
    ],
)
def test_an_error_is_said_once(others: dict[str, str], said: str, tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "data")
    write_jsonl(str(tmp_path / "rows.jsonl"), [others or row for row in tiny_preferences(3)])
    done = subprocess.run(
        [sys.executable, "-m", "lit_rlhf", *WORDS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    _, *found = done.stdout.split("lit-rlhf fit: ")
    assert len(found) == 1 and said in found[0], done.stdout
