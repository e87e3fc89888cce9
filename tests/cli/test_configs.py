"""Every file of configs/ runs, from YAML through `main`, in the order in which a user would run them."""

import json
import os
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from lit_rlhf.cli import main
from lit_rlhf.testing.tiny import write_tiny_world
from tests import warm
from tests.walks import walk

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = ("sft", "reward", "preference", "policy")
"""Policies need reward models, so those run first."""
FILES = [path for stage in STAGES for path in sorted((CONFIGS / stage).glob("*.yaml"))]
SHOWN = [
    CONFIGS / f"{name}.yaml"
    for name in ("sft/lora", "reward/lora", "preference/dpo_lora", "policy/ppo_lora")
]
PARTS = sorted((CONFIGS / "parts").glob("*.yaml"))
ROUNDS = sorted((CONFIGS / "rounds").glob("*.yaml"))
OVERLAYS = sorted((CONFIGS / "overlays").glob("*.yaml"))


def test_there_are_configurations_and_no_others() -> None:
    assert len(FILES) >= 8
    folders = {path.parent.name for path in CONFIGS.rglob("*.yaml")}
    assert folders == {*STAGES, "overlays", "parts", "rounds"}


def test_the_wheel_has_them(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    builder = wheel.WheelBuilder(str(CONFIGS.parent))
    (built,) = builder.build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(built).namelist())
    assert {
        f"lit_rlhf/configs/{path.relative_to(CONFIGS)}" for path in CONFIGS.rglob("*.yaml")
    } <= names


def test_the_four_bit_reward_model_is_an_adapter(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that PPO can put it on the base that the policy has."""
    monkeypatch.chdir(workplace)
    if not Path("runs/reward/nf4_lora/export").is_dir():
        _run(CONFIGS / "reward" / "nf4_lora.yaml")
    assert Path("runs/reward/nf4_lora/export/adapter_config.json").is_file()


def test_configurations_are_short() -> None:
    sizes = {path: len(path.read_text().splitlines()) for path in CONFIGS.rglob("*.yaml")}
    assert sum(sizes.values()) < 700
    assert max(sizes.values()) <= 36


@pytest.mark.parametrize(
    "path", [*FILES, *OVERLAYS, *PARTS, *ROUNDS], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_each_key_has_a_comment(path: Path) -> None:
    """A comment behind it, or a class whose options follow; the file says how to run it."""
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    bare = [
        line
        for line in lines
        if line.strip()
        and "#" not in line
        and not line.rstrip().endswith(":")
        and "class_path" not in line
    ]
    assert path.parent.name == "overlays" or not bare, f"{path.name}: no comment at {bare}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with data/ as configs/ expect it; runs/ of one configuration serve the next."""
    root = tmp_path_factory.mktemp("workplace")
    write_tiny_world(root / "data")
    return root


def _reward_of(path: Path) -> Path | None:
    """The configuration of the reward model that a policy's configuration names."""
    reward = (
        yaml.safe_load(path.read_text())["model"]["init_args"]
        .get("reward", {})
        .get("init_args", {})
        .get("path")
    )
    return CONFIGS / "reward" / f"{Path(reward).parts[-2]}.yaml" if reward else None


def _run(path: Path, *overlays: str) -> None:
    files = [path, *(CONFIGS / "overlays" / f"{name}.yaml" for name in (*overlays, "tiny"))]
    taught = ["--model.teacher.backbone.name", "data/tiny-model"]
    main(
        [
            "fit",
            *(word for file in files for word in ("-c", str(file))),
            *(taught if path.stem == "distill_lora" else []),
            "--data.cache_dir",
            "cache",
        ]
    )


@pytest.mark.parametrize(
    "path", walk(FILES, *SHOWN), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_configuration_runs(path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    needed = _reward_of(path)
    run = Path("runs", path.parent.name, path.stem)
    if needed is not None and not Path("runs", "reward", needed.stem, "export").is_dir():
        _run(needed)
    if not (run / "export").is_dir():
        _run(path)
    assert (run / "export").is_dir()
    assert list((run / "checkpoints").glob("*.ckpt"))
    assert (run / "metrics.jsonl").stat().st_size > 0
    assert list((run / "lightning_logs").rglob("config.yaml"))
    assert path.parent.name != "policy" or (run / "samples.jsonl").stat().st_size > 0
    assert sorted(place.name for place in Path().iterdir()) == ["cache", "data", "runs"]


def test_sigterm_keeps_a_checkpoint(workplace: Path, tmp_path: Path) -> None:
    """`lit-rlhf` in a process of its own, with a configuration as it is shipped, but for its length."""
    files = [CONFIGS / "reward" / "lora.yaml", CONFIGS / "overlays" / "tiny.yaml"]
    words = [
        "--trainer.max_epochs",
        "100000",
        "--run_dir",
        str(tmp_path),
        "--data.cache_dir",
        "cache",
    ]
    started = subprocess.Popen(
        [
            str(warm.commands() / "lit-rlhf"),
            "fit",
            *(word for file in files for word in ("-c", str(file))),
            *words,
        ],
        cwd=workplace,
        env={**os.environ, "PYTHONPATH": str(CONFIGS.parent)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while started.poll() is None and not (tmp_path / "metrics.jsonl").is_file():
            time.sleep(0.1)
        started.terminate()
        _, said = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 143, said
    assert "SIGTERM: saved" in said
    assert "Traceback" not in said
    assert list((tmp_path / "checkpoints").glob("iteration-*.ckpt"))


@pytest.mark.parametrize("method", walk(["rloo", "grpo", "dapo", "online_dpo"], "grpo"))
def test_group_methods_run_with_a_rule(
    method: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = workplace / "arithmetic" / method  # without runs/, so without a reward model
    place.mkdir(parents=True)
    (place / "data").symlink_to(workplace / "data")
    monkeypatch.chdir(place)
    _run(CONFIGS / "policy" / f"{method}_lora.yaml", "arithmetic")
    samples = place / "runs" / "policy" / f"{method}_lora" / "samples.jsonl"
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert rows
    assert all("####" in row["prompt"] for row in rows)
    assert {round(row["score"], 6) for row in rows} <= {1.0, 0.0, -0.1, 0.9, -0.2}
