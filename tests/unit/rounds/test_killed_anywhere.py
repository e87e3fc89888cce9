"""`lit-rlhf iterate` killed in, before the end of and behind each of its steps: the same files, nothing made twice."""

import functools
import hashlib
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_rlhf.files import read_lines
from lit_rlhf.testing.tiny import write_tiny_world
from tests.killed import start
from tests.walks import walk

LENGTH = {"class_path": "LengthReward", "init_args": {"unit": "characters"}}
SAMPLE = {"sampling": {"max_new_tokens": 64}, "dtype": "float32", "batch_size": 3}
PROMPTS = "data/prompts.jsonl"
LABELS = "data/preferences.jsonl"
JUDGE = {
    "class_path": "LocalJudge",
    "init_args": {
        "template": "{{ prompt }} {{ first }} {{ second }}",
        "backbone": {"name": "{policy}"},
    },
}
CALLBACKS = [
    {"class_path": "MetricsFile"},
    {"class_path": "IterationCheckpoint", "init_args": {"every_n_iterations": 1}},
    {"class_path": "ExportModel"},
]
OPTIONS = {
    "trainer": {"max_epochs": 2, "callbacks": CALLBACKS, "logger": False},
    "model": {
        "init_args": {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}}
    },
    "data": {"init_args": {"cache_dir": "cache", "batch_size": 2}},
}
RESULTS = {
    "sample": "candidates.jsonl",
    "preferences": "preferences.jsonl",
    "reward": "reward/export",
    "policy": "policy/export",
    "evaluation": "evaluation.jsonl",
    "agreement": "agreement.jsonl",
}
"""Of each step, where it ends."""
STEPS = [
    ("one round", "round-00", "policy"),
    *(("every kind", "initial", step) for step in ("evaluation", "agreement")),
    *(("every kind", place, step) for place in ("round-00", "round-01") for step in RESULTS),
]
"""Rounds by their name in `PLANS`, directory and step."""


def training(config: str, **options: str) -> dict[str, Any]:
    return {"configs": [config, "overlays/tiny"], "options": OPTIONS, **options}


ASKED = {"prompts": PROMPTS, "num_samples": 16, "sample": SAMPLE}
REWARDED = {"class_path": "RewardFeedback", "init_args": {**ASKED, "reward": LENGTH}}
JUDGED = {"class_path": "JudgeFeedback", "init_args": {**ASKED, "judge": JUDGE}}
ITERATIVE = {"feedback": REWARDED, "training": training("preference/dpo_lora")}
REFRESH = {
    "feedback": JUDGED,
    "prompts": PROMPTS,
    "preferences": LABELS,
    "reward_training": training("reward/full", start="initial", data="all"),
    "training": training("policy/ppo_lora"),
}
MEASURED = {"prompts": PROMPTS, "reward": LENGTH, "sample": SAMPLE}
PLANS: dict[str, dict[str, Any]] = {
    "one round": {"rounds": 1, "method": {"class_path": "IterativeDPO", "init_args": ITERATIVE}},
    "every kind": {
        "rounds": 2,
        "method": {"class_path": "RewardRefresh", "init_args": REFRESH},
        "evaluation": {**MEASURED, "labels": LABELS, "judge": JUDGE},
    },
}
"""One that is quick, and one of two rounds with every kind of step."""


def iterate(place: Path, killed_before: str) -> tuple[int, str]:
    """Start the command in a process of its own: its status, and what it said."""
    done = start(place, killed_before, 1, "iterate", "-c", "rounds.yaml")
    return done.returncode, done.stdout


def content(root: Path) -> dict[str, Any]:
    """What was made, without times; of weights and data every bit."""
    found: dict[str, Any] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        data = path.suffix in (".jsonl", ".safetensors", ".yaml") and path.is_file()
        if (
            data and path.name != "config.yaml"
        ):  # which has the checkpoint that a training went on from
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.name == "metrics.jsonl":
            told = [
                {key: each for key, each in row.items() if not key.startswith("time/")}
                for row in read_lines(path)
            ]
            found[name] = json.dumps(told)
        if path.name == "report.html":
            found[name] = "there"
    record = json.loads((root / "rounds.json").read_text())
    for each in record["rounds"].values():
        each["steps"] = [step["name"] for step in each["steps"]]
    return {**found, "rounds.json": record}


def places(directory: str, step: str) -> list[str]:
    """Where the process is killed, one after the other, each time on its way on from the last."""
    result = f"/runs/{directory}/{RESULTS[step]}"
    hidden = re.escape(f"/runs/{directory}/.{Path(result).name}")
    onto = rf"os.rename .* .*{re.escape(result)}$"
    if step in ("reward", "policy"):
        run = str(Path(result).parent)
        return [
            rf"os.rename .* .*{run}/checkpoints/iteration-0*1.ckpt$",
            rf"opened .*{run}/checkpoints/\.iteration-0*2.ckpt\..*tmp$",  # half a checkpoint
            rf"opened .*{run}/\.export\..*/lit_rlhf.json$",  # half an export
            onto,
            rf"os.remove .*{run}/.checkpoints.lock$",
        ]
    behind = rf"os.remove .*{hidden}\..*tmp$"
    if step in ("preferences", "agreement"):
        return [rf"os.rename .* .*{result[:-1]}$", onto, behind]
    return [rf"open .*{hidden}\.unfinished$", onto, behind]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("world")
    write_tiny_world(place / "data", rows=6)
    return place


def begin(world: Path, place: Path, plan: str) -> None:
    place.mkdir(exist_ok=True)
    (place / "data").symlink_to(world / "data")
    options = {"policy": "data/tiny-model", "run_dir": "runs", **PLANS[plan]}
    (place / "rounds.yaml").write_text(yaml.safe_dump(options))


@pytest.fixture(scope="module")
def whole(world: Path) -> Callable[[str], dict[str, Any]]:
    """What a plan makes that nobody kills."""

    @functools.cache
    def run(plan: str) -> dict[str, Any]:
        place = world / plan
        begin(world, place, plan)
        status, said = iterate(place, "never")
        assert status == 0, said
        return content(place / "runs")

    return run


def check_start(said: str, done: set[str], begun: set[str]) -> None:
    """Of a start: what was there is not made again, and a training that left a checkpoint goes on from it."""
    for who, step, words in re.findall(r"^(round \d|the first policy), (\w+): (.*)$", said, re.M):
        place = f"round-0{who[-1]}" if who.startswith("round") else "initial"
        result = f"{place}/{RESULTS[step]}"
        assert result not in done, f"{result} is made twice"
        assert words.endswith("--ckpt_path last") == (result in begun), words


@pytest.mark.parametrize(("plan", "directory", "step"), walk(STEPS, STEPS[0]))
def test_killed_in_a_step_it_ends_with_the_same_files(
    plan: str,
    directory: str,
    step: str,
    world: Path,
    whole: Callable[[str], dict[str, Any]],
    tmp_path: Path,
) -> None:
    begin(world, tmp_path, plan)
    root = tmp_path / "runs"
    results = [f"{place}/{RESULTS[name]}" for _, place, name in STEPS]
    done: set[str] = set()
    begun: set[str] = set()
    for where in [*places(directory, step), "never"]:
        status, said = iterate(tmp_path, where)
        assert status == (0 if where == "never" else -signal.SIGKILL), (where, said)
        check_start(said, done, begun)
        done = {result for result in results if (root / result).exists()}
        begun = {each for each in results if any((root / each).parent.glob("checkpoints/*.ckpt"))}
    found = content(root)
    # A training that was killed before its first checkpoint begins anew; its measures are set aside.
    aside = {name for name in found if name.endswith("/metrics-1.jsonl")}
    assert {name: each for name, each in found.items() if name not in aside} == whole(plan)
    assert not list(tmp_path.rglob("*.tmp"))
