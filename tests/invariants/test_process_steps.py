"""Two processes agree on what becomes of a step: NaN on one of them, and options that changed since the checkpoint."""

import math
from typing import Any

import pytest
import torch

from tests.invariants.resume_plans import execute, log_of, run, write_world

pytestmark = pytest.mark.slow  # half a minute for 15 runs
STRATEGIES = ("ddp", "fsdp2")
MODULES = {"sft": 1, "grpo": 2}
"""Optimizer steps of an iteration."""
FREE = (1e9, 1e3)
"""Bytes of each process's device: room for the most, and for nothing."""
Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ranks]:
    """What each process of each run left, by the run's name."""
    root = tmp_path_factory.mktemp("steps")
    world = write_world(root / "world")
    plan: dict[str, dict[str, Any]] = {}

    def add(name: str, module: str, strategy: str, **options: Any) -> None:
        defaults = {"nan": [], "most": 10, "lr": 1e-3, "batches": 3, "minibatches": 2}
        each = defaults | options
        plan[name] = run(root / name, world, module, ranks=2, strategy=strategy, **each)

    for strategy in STRATEGIES:
        for module in MODULES:
            add(f"{strategy} {module} skips", module, strategy, nan=[1])
            add(f"{strategy} {module} stops", module, strategy, nan=[1, 2, 3, 4], most=2, batches=5)
        add(f"{strategy} grpo chooses", "grpo", strategy, free=FREE, minibatches=1)
        checkpoint = str(root / f"{strategy}.ckpt")
        add(f"{strategy} before", "sft", strategy, save=checkpoint, batches=2)
        add(f"{strategy} goes on", "sft", strategy, go_on=checkpoint, lr=3e-3, batches=2)
        if strategy == "ddp":
            add(f"{strategy} other", "sft", strategy, go_on=checkpoint, optimizer="SGD", batches=2)
    codes = execute(list(plan.values()), root, "step_runs.py")
    found: dict[str, Ranks] = {}
    for name, code in zip(plan, codes, strict=True):
        assert set(code) == {0}, f"{name}: {log_of(root / name)}"
        files = sorted((root / name).glob("rank-*.pt"))
        found[name] = [torch.load(file, weights_only=True) for file in files]
    return found


@pytest.mark.ddp
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_skip_what_is_nan_on_one(runs: dict[str, Ranks], strategy: str, module: str) -> None:
    first, second = runs[f"{strategy} {module} skips"]
    for rank in (first, second):
        assert not rank["error"]
        assert rank["guard"] == {"skipped": MODULES[module], "in_a_row": 0}
        before, poisoned, after = rank["moved"]
        assert before > 0
        assert poisoned == 0
        assert math.isfinite(after) and after > 0
    for name, weight in first["parameters"].items():
        assert torch.equal(weight, second["parameters"][name]), name


@pytest.mark.ddp
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_stop_after_so_many_in_a_row(
    runs: dict[str, Ranks], strategy: str, module: str
) -> None:
    for rank in runs[f"{strategy} {module} stops"]:
        assert rank["error"].startswith("TrainingDivergedError: ")
        assert "not finite in 2 optimizer steps in a row" in rank["error"]
        assert rank["guard"] == {"skipped": 2, "in_a_row": 2}


@pytest.mark.ddp
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_go_on_with_what_is_written_now(runs: dict[str, Ranks], strategy: str) -> None:
    first, second = runs[f"{strategy} goes on"]
    assert "model.lr was 0.001, is 0.003" in first["said"]
    for rank in (first, second):
        assert not rank["error"]
        assert set(rank["lr"]) == {3e-3}
        assert set(rank["steps"]) == {4.0}
        assert len(rank["moved"]) == 2
    for name, weight in first["parameters"].items():
        assert torch.equal(weight, second["parameters"][name]), name


@pytest.mark.ddp
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_take_the_microbatches_that_fit_on_either(
    runs: dict[str, Ranks], strategy: str
) -> None:
    first, second = runs[f"{strategy} grpo chooses"]
    assert first["size"] == second["size"] == 8
    for name, weight in first["parameters"].items():
        assert torch.equal(weight, second["parameters"][name]), name


@pytest.mark.ddp
def test_both_refuse_another_optimizer(runs: dict[str, Ranks]) -> None:
    for rank in runs["ddp other"]:
        assert rank["error"].startswith("CheckpointError: ")
        assert "was AdamW, is SGD" in rank["error"]
