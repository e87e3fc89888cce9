"""On a device that isn't the CPU everything lies where it should, and is what it is on the CPU.

The device is a stand-in (`tests/card`) that refuses what a GPU refuses: operands of two devices, a NumPy array of its
memory. Its arithmetic is the CPU's, so results are equal but for the order in which a few are summed.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import warm
from tests.card import device
from tests.invariants.process_others import OTHERS
from tests.invariants.resume_plans import execute, log_of, run, write_world
from tests.tolerances import METRICS, PROCESSES

pytestmark = pytest.mark.skipif(not device.BUILDABLE, reason="needs a C++ compiler and ninja")
KINDS = ("reward-lora", "sft", "tdpo-lora", "ppo", "ppo-lora", "grpo", "distill")


def same_as_on_cpu(kinds: tuple[str, ...], root: Path) -> None:
    world = write_world(root / "world")
    cases = [(way, kind) for kind in kinds for way in ("one", "card")]
    plan = [run(root / way / kind, world, kind, strategy=way) for way, kind in cases]
    codes = execute(plan, root, "process_runs.py")
    wrong = [
        f"{way}, {kind}:\n{log_of(root / way / kind)}"
        for (way, kind), code in zip(cases, codes, strict=True)
        if code != [0]
    ]
    assert not wrong, "\n\n".join(wrong)
    for kind in kinds:
        ours, theirs = (
            torch.load(root / way / kind / "rank-0.pt", weights_only=True)
            for way in ("card", "one")
        )
        assert ours["moved"] > 1e-3
        assert ours["rollouts"] == theirs["rollouts"]
        for name, expected in theirs["parameters"].items():
            torch.testing.assert_close(ours["parameters"][name], expected, **PROCESSES, msg=name)


@pytest.mark.walk
def test_training_is_the_same(tmp_path: Path) -> None:
    same_as_on_cpu(KINDS, tmp_path)


@pytest.mark.slow
def test_so_is_that_of_every_other_module(tmp_path: Path) -> None:
    same_as_on_cpu(("reward-lora", *OTHERS), tmp_path)


@pytest.mark.slow
def test_commands_write_the_same(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    plan = [run(tmp_path / "reward", world, "reward-lora")]
    assert execute(plan, tmp_path, "process_runs.py") == [[0]]
    script = Path(__file__).with_name("card_commands.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    said = [
        subprocess.run(
            [warm.python(), str(script), where, str(tmp_path)],
            env=environment,
            capture_output=True,
            check=False,
        )
        for where in ("cpu", "card")
    ]
    for one in said:
        assert one.returncode == 0, one.stderr.decode()
    plain, ours = (one.stdout.splitlines()[-2:] for one in said)
    assert plain == ours  # what chat answered
    for name in ("samples", "plain", "scores", "labels"):
        plain, ours = (_rows(tmp_path / where / f"{name}.jsonl") for where in ("cpu", "card"))
        assert ours == [pytest.approx(row, abs=METRICS["abs_tol"]) for row in plain], name
    plain, ours = (
        load_file(tmp_path / where / "reward" / "model.safetensors") for where in ("cpu", "card")
    )
    for name, expected in plain.items():  # `--calibrate` divides the head by what it has fitted
        torch.testing.assert_close(ours[name], expected, **PROCESSES, msg=name)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
