"""Losses give the same gradients and the same metrics when a batch is spread over two processes."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing import assert_close
from torch.testing._internal.distributed.fake_pg import FakeStore

from lit_rlhf import distributed
from lit_rlhf.types import asked
from tests import warm
from tests.tolerances import FP64
from tests.unit.objectives.two_ranks import Found, on_rows

ROOT = Path(__file__).parents[3]


@pytest.mark.ddp
def test_two_ranks_are_one_batch(tmp_path: Path) -> None:
    command = [warm.python(), "-m", "tests.unit.objectives.two_ranks"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT, env=environment)
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    alone = on_rows(slice(None))
    assert len(alone) > 35
    for rank in (0, 1):
        found: Found = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        for name, (gradient, means) in alone.items():
            assert_close(
                found[name][0], gradient, **FP64, msg=lambda said, name=name: f"{name}: {said}"
            )
            assert found[name][1] == pytest.approx(means, rel=FP64["rtol"]), name


def test_alone_nothing_is_gathered() -> None:
    rows = torch.randn(3, requires_grad=True)
    assert distributed.gather_rows(rows) is rows
    assert distributed.own_rows(rows, rows) is rows
    assert distributed.sum_over_ranks(rows).requires_grad is False
    weights = torch.tensor([1.0, 0.0, 3.0])
    assert_close(distributed.weighted_mean(rows, weights), (rows[0] + 3 * rows[2]).detach() / 4)


def test_processes_have_the_same_rows_to_the_last_bit() -> None:
    """Each of three as if all had what this one has; a sum of multiples would round."""
    dist.init_process_group("fake", rank=1, world_size=3, store=FakeStore())
    try:
        rows = torch.randn(50, requires_grad=True)
        gathered = distributed.gather_rows(rows)
        assert torch.equal(gathered, rows.repeat_interleave(3))
        gathered.sum().backward()
        assert torch.equal(asked(rows.grad), torch.full((50,), 3.0))
    finally:
        dist.destroy_process_group()
