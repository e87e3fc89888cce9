"""Losses that look at the whole batch give the same gradients when it is spread over two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lit_rlhf import distributed
from tests.tolerances import FP64
from tests.unit.objectives.two_ranks import ROWS, gradients

ROOT = Path(__file__).parents[3]


@pytest.mark.ddp
def test_two_ranks_are_one_batch(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.unit.objectives.two_ranks"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT, env=environment)
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for name, expected in gradients(slice(None)).items():
        assert_close(found[name], expected, **FP64, msg=lambda text, name=name: f"{name}: {text}")


def test_alone_nothing_is_gathered() -> None:
    rows = torch.randn(3, requires_grad=True)
    assert distributed.gather_rows(rows) is rows
    assert distributed.own_rows(rows, rows) is rows
    assert distributed.sum_over_ranks(rows).requires_grad is False
    weights = torch.tensor([1.0, 0.0, 3.0])
    assert_close(distributed.weighted_mean(rows, weights), (rows[0] + 3 * rows[2]).detach() / 4)
