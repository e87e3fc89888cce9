"""Of two processes one stops or goes astray: both end soon, with a code other than 0, and say who was awaited."""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.callbacks.watchdog import EXIT_CODE
from tests import warm
from tests.invariants.resume_plans import write_world

pytestmark = [pytest.mark.slow, pytest.mark.ddp]  # 15 s for each pair
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def run(world: Path, does: str, rank: int, **watchdog: float) -> list[tuple[int, str]]:
    """The exit code of each process, and what it said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    plan: dict[str, Any] = {"world": str(world), "does": does, "rank": rank, "watchdog": watchdog}
    plan |= {"ranks": 2, "strategy": "ddp"}
    script = Path(__file__).with_name("watchdog_runs.py")
    started = []
    for each in range(2):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(each),
            "LOCAL_RANK": str(each),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "test",
        }
        command = [warm.python(), str(script), json.dumps(plan)]
        started.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        )
    try:
        said = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


@pytest.mark.parametrize("stopped", [0, 1])
def test_one_that_is_stopped(world: Path, stopped: int) -> None:
    """Rank 0 holds the store by which they speak."""
    found = run(world, "stop", stopped, silence=4.0)
    code, said = found[1 - stopped]
    assert code == EXIT_CODE, said
    assert f"Watchdog of rank {1 - stopped}: rank {stopped} did not come" in said
    assert f"  rank {stopped}: reward of iteration 2" in said
    assert "in all_reduce" in said, "where it waits"
    assert found[stopped][0] == -signal.SIGKILL


def test_one_that_is_elsewhere(world: Path) -> None:
    found = run(world, "sleep 1000", 1, limit=4.0)
    for rank, (code, said) in enumerate(found):
        assert code == EXIT_CODE, said
        assert f"Watchdog of rank {rank}: rank 1 did not come" in said
        assert "  rank 1: reward of iteration 2" in said
    assert "watchdog_runs.py" in found[1][1].partition("threads are here")[2], "where it is"


def test_one_that_takes_its_time_is_waited_for(world: Path) -> None:
    assert [code for code, _ in run(world, "sleep 8", 1, silence=2.0)] == [0, 0]
