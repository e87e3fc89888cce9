"""`lit-rlhf iterate` as users run it, killed at several points: the same bits as without."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lit_rlhf.testing.tiny import write_tiny_world

ROOT = Path(__file__).parents[3]
LENGTH = {"class_path": "LengthReward", "init_args": {"unit": "characters"}}
SAMPLE = {"sampling": {"max_new_tokens": 100}}
CALLBACKS = [
    {"class_path": "MetricsFile"},
    {"class_path": "IterationCheckpoint", "init_args": {"every_n_iterations": 1}},
    {"class_path": "Preemption"},
    {"class_path": "ExportModel"},
]
OPTIONS = {
    "trainer": {"max_epochs": 6, "limit_train_batches": 1.0, "callbacks": CALLBACKS},
    "model": {
        "init_args": {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}}
    },
    "data": {"init_args": {"cache_dir": "cache", "batch_size": 2}},
}
FEEDBACK = {"prompts": "data/prompts.jsonl", "reward": LENGTH, "num_samples": 16, "sample": SAMPLE}
PLAN = {
    "policy": "data/tiny-model",
    "rounds": 2,
    "method": {
        "class_path": "IterativeDPO",
        "init_args": {
            "feedback": {"class_path": "RewardFeedback", "init_args": FEEDBACK},
            "training": {
                "configs": ["preference/dpo_lora", "overlays/tiny"],
                "options": OPTIONS,
            },
        },
    },
    "evaluation": {"prompts": "data/prompts.jsonl", "reward": LENGTH, "sample": SAMPLE},
}
POINTS = [
    "round-00/policy/checkpoints/iteration-*2.ckpt",
    "round-00/policy/export",
    "round-01/preferences.jsonl",
]


def start(place: Path, run_dir: str) -> "subprocess.Popen[str]":
    words = ["iterate", "-c", "rounds.yaml", "--run_dir", run_dir]
    return subprocess.Popen(
        [sys.executable, "-m", "lit_rlhf", *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LIT_RLHF_CACHE": str(place / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return said


def content(root: Path) -> dict[str, str]:
    paths = [*root.glob("*/*.jsonl"), *root.rglob("export/*")]
    paths = [path for path in paths if path.is_file() and path.suffix in (".jsonl", ".safetensors")]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a dozen processes that import torch
def test_killed_rounds_end_with_the_same_bits(tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "data", rows=12)
    (tmp_path / "rounds.yaml").write_text(yaml.safe_dump(PLAN))
    finish(start(tmp_path, "whole"))
    for point in POINTS:
        process = start(tmp_path, "killed")
        end = time.monotonic() + 600
        while not list((tmp_path / "killed").glob(point)):
            assert process.poll() is None and time.monotonic() < end, point
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)  # and not its child, which must not go on by itself
        said, _ = process.communicate()
        assert ("--ckpt_path last" in said) == (point == "round-00/policy/export")
    said = finish(start(tmp_path, "killed"))
    assert "round 0," not in said
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert len(content(tmp_path / "whole")) == 7  # pairs and weights twice, three evaluations


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a dozen processes that import torch
def test_sigterm_reaches_the_training(tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "data", rows=12)
    plan = yaml.safe_load(yaml.safe_dump(PLAN))
    plan["method"]["init_args"]["training"]["options"]["trainer"]["max_epochs"] = 100000
    (tmp_path / "rounds.yaml").write_text(yaml.safe_dump({**plan, "evaluation": None}))
    process = start(tmp_path, "runs")
    while not list(tmp_path.glob("runs/round-00/policy/checkpoints/*.ckpt")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "SIGTERM: saved" in said
    assert '"state": "interrupted"' in (tmp_path / "runs/rounds.json").read_text()
