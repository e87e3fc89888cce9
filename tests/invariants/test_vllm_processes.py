"""Two processes that sample with vLLM servers train as one does, and as one that samples by itself; also when one dies.

The servers are a tiny model behind vLLM's HTTP, and under the marker `vllm` vLLM itself; `benchmarks/vllm_servers.py`
kills one of those, and trains for longer.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.invariants.resume_plans import execute, log_of, run, write_world
from tests.loopback import serving
from tests.tolerances import PROCESSES
from tests.unit.rollout.fake_vllm import FakeServer
from tests.unit.rollout.real_vllm import serving_vllm

Ranks = list[dict[str, Any]]
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "whole": {
        "reward": {"module": "reward-lora"},
        "native": {"module": "grpo"},
        "one": {"module": "vllm"},
        "fsdp2": {"module": "vllm", "ranks": 2, "strategy": "fsdp2"},
    },
    "lora": {
        "one": {"module": "vllm-lora"},
        "ddp": {"module": "vllm-lora", "ranks": 2, "strategy": "ddp"},
    },
    "ahead": {
        "one ahead": {"module": "ahead"},
        "fsdp2 ahead": {"module": "ahead", "ranks": 2, "strategy": "fsdp2"},
    },
}
DYING = {"fsdp2", "ddp", "fsdp2 ahead"}
"""Where one of two servers stops answering in the middle of the second rollout, sampled ahead or not."""


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Ranks]:
    """What each process of each run left."""
    cases = CASES[request.param]
    root = tmp_path_factory.mktemp("processes")
    world = write_world(root / "world")
    with ExitStack() as stack:
        plan = []
        dying = []
        for name, options in cases.items():
            servers = [FakeServer(world / "tiny-model") for _ in range(2)]
            urls = [stack.enter_context(serving(server)).url for server in servers]
            if name in DYING:
                servers[0].die_after = 9
                dying.append(servers)
            plan.append(run(root / name, world, **{"urls": urls, **options}))
        found = left(plan, root)
    for first, second in dying:
        assert first.down and len(second.completions) > len(first.completions) > 8
    return found


def left(plan: list[dict[str, Any]], root: Path) -> dict[str, Ranks]:
    """Of the runs of a plan."""
    codes = execute(plan, root, "process_runs.py")
    found = {}
    for one, code in zip(plan, codes, strict=True):
        directory = Path(one["directory"])
        assert set(code) == {0}, f"{directory.name}: {log_of(directory)}"
        files = sorted(directory.glob("rank-*.pt"))
        found[directory.name] = [torch.load(file, weights_only=True) for file in files]
    return found


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("runs", "name", "as_"),
    [
        pytest.param("whole", "one", "native", marks=pytest.mark.slow),
        pytest.param("whole", "fsdp2", "native", marks=pytest.mark.slow),
        pytest.param("ahead", "fsdp2 ahead", "one ahead", marks=pytest.mark.slow),
        ("lora", "ddp", "one"),
    ],
    indirect=["runs"],
)
def test_processes_train_as_one(runs: dict[str, Ranks], name: str, as_: str) -> None:
    (whole,) = runs[as_]
    late = {rank["metrics"][-1].get("train/rollout/staleness") for rank in (whole, *runs[name])}
    assert late == {1.0 if "ahead" in name else None}
    train_as(whole, runs[name])


def train_as(whole: dict[str, Any], ranks: Ranks) -> None:
    """Processes have the parameters and the samples of one."""
    assert whole["moved"] > 1e-3
    for rank in ranks:
        for key, expected in whole["parameters"].items():
            torch.testing.assert_close(rank["parameters"][key], expected, **PROCESSES, msg=key)
    for number, expected in enumerate(whole["rollouts"]):
        found = [rank["rollouts"][number] for rank in ranks]
        assert {key: value for part in found for key, value in part.items()} == expected
        assert sum(map(len, found)) == len(expected), "each asks for its own prompts"


@pytest.mark.vllm
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("module", "strategy"), [("vllm-lora", "ddp"), ("ahead", "fsdp2")])
def test_processes_train_as_one_on_vllm_itself(tmp_path: Path, module: str, strategy: str) -> None:
    world = write_world(tmp_path / "world", hidden_size=128, head_dim=32)
    with serving_vllm(world / "tiny-model", tmp_path, count=2) as servers:
        given: dict[str, Any] = {"urls": [server.url for server in servers]}
        ranks = {"ranks": 2, "strategy": strategy}
        plan = [
            run(tmp_path / "one", world, module, **given),
            run(tmp_path / "two", world, module, **given, **ranks),
        ]
        found = left(plan, tmp_path)
    (whole,) = found["one"]
    train_as(whole, found["two"])
