"""What the first of several processes writes, and the others wait for."""

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.multiprocessing import start_processes

from lit_rlhf.distributed import by_first_rank
from lit_rlhf.errors import ConfigurationError, LitRLHFError


def two(rank: int, place: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place / 'group'}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=20),
    )

    def write() -> None:
        assert rank == 0
        time.sleep(0.3)
        (place / "export").touch()

    def fail() -> None:
        raise ConfigurationError("no head to export")

    by_first_rank("export", write)
    assert (place / "export").exists()
    with pytest.raises(LitRLHFError, match="no head to export"):
        by_first_rank("export", fail)
    if rank == 0:  # a script that asks whether it is the first is not held up
        by_first_rank("export", write)
    dist.barrier()
    dist.destroy_process_group()


def test_others_wait_for_the_first_fail_as_it_fails_and_hold_up_nobody(tmp_path: Path) -> None:
    start_processes(two, args=(tmp_path,), nprocs=2, start_method="fork")


def test_one_process_writes(tmp_path: Path) -> None:
    by_first_rank("export", (tmp_path / "export").touch)
    assert (tmp_path / "export").exists()
