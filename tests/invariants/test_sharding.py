"""FSDP2 on two processes: what each holds, what is whole when, and in which dtype everything is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.estimate import Plan, Processes, run_plan
from lit_rlhf.testing.tokenizers import make_tokenizer
from tests.invariants.resume_plans import execute, log_of, run
from tests.invariants.sharded_runs import LOAD, make_module
from tests.unit.estimate.test_estimating import BARE

pytestmark = [pytest.mark.slow, pytest.mark.ddp, pytest.mark.timeout(1200)]
FLOAT, HALF = "torch.float32", "torch.bfloat16"
RUNS = {
    "float32": "32-true",
    "mixed": "bf16-mixed",
    "lora": "32-true",
    "distill": "32-true",
    "mixture": "32-true",
}
"""Kinds of runs, and their precision."""
PHASES = ("rollout", "reward", "reference", "update")
Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def runs(tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ranks]:
    """What each process of each run saw."""
    root = tmp_path_factory.mktemp("sharded")
    plan = [
        run(root / kind, Path(tokenizer), kind, ranks=2, strategy="fsdp2", precision=precision)
        for kind, precision in RUNS.items()
    ]
    found = {}
    for kind, codes in zip(RUNS, execute(plan, root, "sharded_runs.py"), strict=True):
        assert set(codes) == {0}, log_of(root / kind)
        files = sorted((root / kind).glob("rank-*.pt"))
        found[kind] = [torch.load(file, weights_only=True) for file in files]
    return found


@pytest.mark.parametrize("kind", RUNS)
def test_each_phase_takes_what_is_estimated(
    runs: dict[str, Ranks], kind: str, tokenizer: str
) -> None:
    autocast = torch.bfloat16 if kind == "mixed" else None
    module = make_module(tokenizer, kind)
    load = replace(LOAD, branches=2) if kind == "mixture" else LOAD
    plan = Plan(module, load, BARE, autocast, processes=Processes(2, "fsdp2"))
    estimated = {phase.name: phase.total for phase in run_plan(plan).phases}
    for rank in runs[kind]:
        phases = set(PHASES) & rank["peaks"].keys() & estimated.keys()
        assert phases >= {"rollout", "update"}
        for phase in phases:
            assert rank["peaks"][phase] == pytest.approx(estimated[phase], rel=0.06), phase


@pytest.mark.parametrize("kind", ["float32", "mixed"])
@pytest.mark.parametrize("phase", ["reward", "reference"])
def test_scoring_never_holds_a_model(runs: dict[str, Ranks], kind: str, phase: str) -> None:
    for rank in runs[kind]:
        assert rank["peaks"][phase] - rank["divided"] < 0.75 * rank["model"]


@pytest.mark.parametrize("kind", RUNS)
def test_no_phase_begins_with_weights_that_another_left_whole(
    runs: dict[str, Ranks], kind: str
) -> None:
    assert [rank["begun whole"] for rank in runs[kind]] == [[], []]


@pytest.mark.parametrize("kind", RUNS)
def test_weights_are_sent_as_they_are_and_gradients_in_float32(
    runs: dict[str, Ranks], kind: str
) -> None:
    # Of several dtypes in one layer, a base and its adapters, bytes are sent.
    weights = {"torch.uint8", HALF, FLOAT} if kind == "lora" else {FLOAT}
    for rank in runs[kind]:
        sent: dict[str, set[str]] = {"allgather_base": set(), "reduce_scatter_base": set()}
        for _, what, dtype in rank["sent"]:
            sent[what].add(dtype)
        assert sent["allgather_base"] <= weights
        assert sent["reduce_scatter_base"] == {FLOAT}
        assert rank["moments"] == [FLOAT]
        assert rank["weights"] == ([HALF, FLOAT] if kind == "lora" else [FLOAT])


@pytest.mark.parametrize("kind", RUNS)
def test_samples_are_drawn_from_a_copy_in_the_dtype_of_products(
    runs: dict[str, Ranks], kind: str
) -> None:
    dtype = HALF if kind in ("mixed", "lora") else FLOAT
    for rank in runs[kind]:
        assert set(rank["steps"]) == {f"PackedStep {dtype}"}
