"""Two processes that Lightning starts by itself: what they say is said once, and is theirs to say."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from lit_rlhf.testing import tiny_preferences, write_jsonl
from lit_rlhf.testing.tiny import write_tiny_world
from tests import warm

ROOT = Path(__file__).parents[2]
OVERLAYS = ["-c", "overlays/tiny", "-c", "overlays/ddp"]
ROWS = ["--data.train.path", "rows.jsonl", "--data.val_fraction", "0"]


def fit(where: Path, config: str, *words: str) -> subprocess.CompletedProcess[str]:
    write_tiny_world(where / "data")
    return subprocess.run(
        [warm.python(), "-m", "lit_rlhf", "fit", "-c", config, *OVERLAYS, *words],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("others", "said"),
    [
        # found by the first process, which alone prepares data
        pytest.param({"question": "a"}, "rows.jsonl", marks=pytest.mark.slow),
        ({}, "don't fill one batch"),  # found by both
    ],
)
@pytest.mark.walk
def test_an_error_is_said_once(others: dict[str, str], said: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [others or row for row in tiny_preferences(3)])
    done = fit(tmp_path, "reward/lora", *ROWS)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    _, *found = done.stdout.split("lit-rlhf fit: ")
    assert len(found) == 1 and said in found[0], done.stdout


@pytest.mark.slow
@pytest.mark.ddp
def test_a_run_gives_no_advice_about_what_the_library_has_done(tmp_path: Path) -> None:
    done = fit(tmp_path, "preference/kto_lora", "--run_dir", "run")
    assert done.returncode == 0, done.stdout
    for noise in ("sync_dist", "broadcast_buffers"):
        assert noise not in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["train", "train", "validation"]
