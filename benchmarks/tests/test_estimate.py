"""The comparison of estimated and measured memory."""

import sys
from pathlib import Path

import pytest

from benchmarks.estimate.__main__ import GIVES_BACK, GOAL, estimated, shown
from benchmarks.estimate.cases import CASES
from benchmarks.peers.processes import measure


def test_a_miss_is_marked() -> None:
    rows = {
        name: {"estimated": size, "measured": 100 * 2**20, "default": 150 * 2**20}
        for name, size in (("near", 110 * 2**20), ("far", 120 * 2**20))
    }
    near, far = shown(rows).splitlines()[2:]
    assert near == "| near | 110 | 100 | 1.10 | 150 |"
    assert far == "| far | 120 | 100 | 1.20 **missed** | 150 |"


@pytest.mark.slow
def test_a_process_takes_what_was_estimated(tmp_path: Path) -> None:
    name = "reward model, LoRA, bfloat16, recomputed"
    command = [sys.executable, "-m", "benchmarks.estimate.measured", str(list(CASES).index(name))]
    run = measure(command, log=tmp_path / "log.txt", threads=1, environment=GIVES_BACK)
    assert estimated(CASES[name]) == pytest.approx(run.result["bytes"], rel=GOAL)
