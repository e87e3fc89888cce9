"""Two processes that sample with vLLM servers train as one does, and as one that samples by itself; also when one dies.

The servers are a tiny model behind vLLM's HTTP; `benchmarks/vllm_servers.py` trains by two processes on vLLM itself.
"""

from contextlib import ExitStack
from typing import Any

import pytest
import torch

from tests.invariants.resume_plans import execute, log_of, run, write_world
from tests.loopback import serving
from tests.tolerances import PROCESSES
from tests.unit.rollout.fake_vllm import FakeServer

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
        codes = execute(plan, root, "process_runs.py")
    for name, code in zip(cases, codes, strict=True):
        assert set(code) == {0}, f"{name}: {log_of(root / name)}"
    for first, second in dying:
        assert first.down and len(second.completions) > len(first.completions) > 8
    return {
        name: [torch.load(f, weights_only=True) for f in sorted((root / name).glob("rank-*.pt"))]
        for name in cases
    }


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
    assert whole["moved"] > 1e-3
    late = {rank["metrics"].get("train/rollout/staleness") for rank in (whole, *runs[name])}
    assert late == {1.0 if "ahead" in name else None}
    for rank in runs[name]:
        for key, expected in whole["parameters"].items():
            torch.testing.assert_close(rank["parameters"][key], expected, **PROCESSES, msg=key)
    for number, expected in enumerate(whole["rollouts"]):
        found = [rank["rollouts"][number] for rank in runs[name]]
        assert {key: value for part in found for key, value in part.items()} == expected
        assert sum(map(len, found)) == len(expected), "each asks for its own prompts"
