"""Plans for `resume_runs.py` and `process_runs.py`, and comparison of what their runs leave."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import torch

from lit_rlhf.testing import (
    tiny_demonstrations,
    tiny_preferences,
    tiny_prompts,
    write_jsonl,
    write_tiny_model,
)
from tests import warm

ROWS, VALIDATION_ROWS = 20, 4
KILLED = -signal.SIGKILL


def write_world(root: Path, **model: int) -> Path:
    """A tiny model, and rows of each kind."""
    write_tiny_model(root / "tiny-model", **model)
    for name, make in (
        ("demonstrations", tiny_demonstrations),
        ("preferences", tiny_preferences),
        ("prompts", tiny_prompts),
    ):
        write_jsonl(root / f"{name}.jsonl", make(ROWS))
        rows = make(VALIDATION_ROWS, seed=1)
        if (
            name == "preferences"
        ):  # the last ones alone are of "b": one process of two may see none of them
            rows = [{**row, "subset": "ab"[i >= len(rows) - 1]} for i, row in enumerate(rows)]
        write_jsonl(root / f"{name}_val.jsonl", rows)
    return root


def run(directory: Path, world: Path, module: str, **options: Any) -> dict[str, Any]:
    """One run of a plan."""
    defaults: dict[str, Any] = {"ranks": 1, "strategy": "one", "workers": 0}
    return {
        "directory": str(directory),
        "world": str(world),
        "module": module,
        **defaults,
        **options,
    }


def execute(
    plan: list[dict[str, Any]], directory: Path, script_name: str = "resume_runs.py"
) -> list[list[int]]:
    """Do the runs; the exit codes of each one's processes."""
    file = directory / "plan.json"
    file.write_text(json.dumps(plan))
    script = Path(__file__).with_name(script_name)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [warm.python(), str(script), str(file)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    codes: list[list[int]] = json.loads(file.with_suffix(".out").read_text())
    return codes


def log_of(directory: Path) -> str:
    """What the run's processes said."""
    return "\n".join(path.read_text() for path in sorted(directory.glob("log-*.txt")))


def checkpoint_of(directory: Path) -> dict[str, Any]:
    """The last checkpoint, whole: parameters, optimizer, schedule, module, data and loops."""
    newest = max((directory / "checkpoints").glob("iteration-*.ckpt"))
    state: dict[str, Any] = torch.load(newest, weights_only=True)
    return state


def difference(ours: Any, theirs: Any, path: str = "") -> str | None:
    """Where two checkpoints differ by as much as a bit, or None."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return next(
            (
                found
                for key in ours
                if (found := difference(ours[key], theirs[key], f"{path}/{key}"))
            ),
            None,
        )
    if (
        isinstance(ours, list | tuple)
        and isinstance(theirs, list | tuple)
        and len(ours) == len(theirs)
    ):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return next(
            (found for i, (a, b) in pairs if (found := difference(a, b, f"{path}/{i}"))), None
        )
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        same = ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        return None if same else f"{path}: {ours} is not {theirs}"
    return None if ours == theirs else f"{path}: {ours!r} is not {theirs!r}"
