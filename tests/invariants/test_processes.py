"""Two processes train as one with the same global batch: same rollouts, parameters and metrics."""

import inspect
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf import modules
from lit_rlhf.modules import RLHFModule
from tests.invariants.process_others import OTHERS
from tests.invariants.process_runs import make_module
from tests.invariants.resume_plans import execute, log_of, run, write_world
from tests.public import public_names
from tests.tolerances import METRICS, PROCESSES
from tests.walks import walk

WHOLE = ("sft", "reward", "dpo", "ppo", "grpo")
KINDS = {
    "ddp": (*WHOLE, "ppo-nf4", "tdpo"),
    "fsdp2": (*WHOLE, "ppo-lora", "grpo-window", "distill", "tdpo", "tdpo-lora"),
}
SHOWN = (("ddp", "ppo"), ("fsdp2", "ppo"))
CASES = walk([(strategy, kind) for strategy, kinds in KINDS.items() for kind in kinds], *SHOWN)
POLICIES = ("ppo", "grpo", "grpo-window", "ppo-lora", "ppo-nf4", "distill")
PADDING = "train/padding_share"
Ranks = list[dict[str, Any]]


class Runs(dict[tuple[str, str], Ranks]):
    """What each process of a run left, by strategy ("one", "ddp", "fsdp2") and kind; a run is made when asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root, self.world = root, write_world(root / "world")

    def __missing__(self, case: tuple[str, str]) -> Ranks:
        way, kind = case
        if kind in POLICIES:
            self["one", "reward-lora"]  # its checkpoint scores them
        root = self.root / way / kind
        plan = [run(root, self.world, kind, ranks=1 if way == "one" else 2, strategy=way)]
        (codes,) = execute(plan, self.root, "process_runs.py")
        assert set(codes) == {0}, f"{way}, {kind}: {log_of(root)}"
        left = sorted(root.glob("rank-*.pt"))
        self[case] = [torch.load(file, weights_only=True) for file in left]
        return self[case]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("processes"))


@pytest.mark.ddp
@pytest.mark.parametrize(("strategy", "kind"), CASES)
def test_parameters_are_those_of_one_process_and_of_each_other(
    runs: Runs, strategy: str, kind: str
) -> None:
    same_parameters(runs, strategy, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_so_does_every_other_module(kind: str, tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    for strategy in ("ddp", "fsdp2"):
        same_parameters(runs, strategy, kind)
        same_metrics(runs, strategy, kind)


def same_parameters(runs: Runs, strategy: str, kind: str) -> None:
    (whole,), (first, second) = runs["one", kind], runs[strategy, kind]
    assert whole["moved"] > 1e-3
    for name, expected in whole["parameters"].items():
        assert torch.equal(first["parameters"][name], second["parameters"][name]), name
        torch.testing.assert_close(first["parameters"][name], expected, **PROCESSES, msg=name)
    assert first["parameters"].keys() == whole["parameters"].keys()


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("strategy", "kind"), [case for case in CASES if case.values[1] in POLICIES]
)
def test_rollouts_differ_between_processes_and_are_those_of_one(
    runs: Runs, strategy: str, kind: str
) -> None:
    (whole,), ranks = runs["one", kind], runs[strategy, kind]
    assert len(whole["rollouts"]) == 2
    lengths = [
        {
            len(sample)
            for rows in rank["rollouts"]
            for samples in rows.values()
            for sample in samples
        }
        for rank in ranks
    ]
    assert all(len(found) > 1 for found in lengths)
    for expected, first, second in zip(
        whole["rollouts"], *(rank["rollouts"] for rank in ranks), strict=True
    ):
        assert first.keys().isdisjoint(second)
        assert first | second == expected
        assert all(ours != theirs for ours, theirs in product(first.values(), second.values()))


@pytest.mark.ddp
def test_processes_that_divide_their_rows_otherwise_make_as_many_passes(
    runs: Runs,
) -> None:
    first, second = (rank["passes"] for rank in runs["fsdp2", "ppo"])
    assert [most for _, most in first] == [most for _, most in second]
    # The reward, the policy's own log-probs, the reference's and the values.
    assert sum(ours != theirs for (ours, _), (theirs, _) in zip(first, second, strict=True)) >= 4


@pytest.mark.ddp
@pytest.mark.parametrize(("strategy", "kind"), CASES)
def test_metrics_are_those_of_one_process(runs: Runs, strategy: str, kind: str) -> None:
    same_metrics(runs, strategy, kind)


def same_metrics(runs: Runs, strategy: str, kind: str) -> None:
    """Of each step and validation, on each process."""
    (whole,), ranks = runs["one", kind], runs[strategy, kind]
    assert len(whole["metrics"]) > 2
    for rank in ranks:
        wrong = [
            (step, name, line[name], expected[name])
            for step, (line, expected) in enumerate(
                zip(rank["metrics"], whole["metrics"], strict=True)
            )
            for name in line.keys() | expected.keys()
            if not math.isclose(line[name], expected[name], **METRICS)
        ]
        assert not [each for each in wrong if each[1] != PADDING]
    # Each process pads to the longest row of its own, and tells the share of all.
    shares = [[line.get(PADDING) for line in rank["metrics"]] for rank in ranks]
    assert shares[0] == shares[1]


def test_every_module_with_a_step_of_its_own_is_among_them(tmp_path: Path) -> None:
    """A class that only names options of another is trained as that one."""
    world = write_world(tmp_path)
    kinds = {*KINDS["ddp"], *KINDS["fsdp2"], *OTHERS}
    trained = {base for kind in kinds for base in type(make_module(kind, world)).__mro__}
    named = (getattr(modules, name) for name in public_names("lit_rlhf.modules"))
    own = [
        each
        for each in named
        if inspect.isclass(each)
        and issubclass(each, RLHFModule)
        and {name for name, part in vars(each).items() if inspect.isfunction(part)} - {"__init__"}
    ]
    assert len(own) > 15
    assert [each.__name__ for each in own if each not in trained] == []
