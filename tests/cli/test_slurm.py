"""The script of docs/SCALING.md for SLURM: two tasks on this machine, stopped by SLURM's signal and started again."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lit_rlhf.testing.tiny import write_tiny_world
from tests import warm
from tests.cli.test_torchrun import ROOT, TINY, documented
from tests.invariants.resume_plans import checkpoint_of, difference

TASKS = 2


def start(where: Path, job: int) -> list["subprocess.Popen[str]"]:
    """What srun does with the script's command on one node: a process for each task, with SLURM's variables."""
    words = documented("srun")[1:]
    words[words.index("--trainer.num_nodes") + 1] = "1"
    words += [*TINY, "--model.reward", "LengthReward", "--trainer.max_epochs", "6"]
    words += ["--trainer.devices", str(TASKS)]
    path = f"{where.parent / 'bin'}:{warm.commands()}:{os.environ['PATH']}"
    slurm = {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NAME": "ppo.sbatch",
        "SLURM_NTASKS": str(TASKS),
        "SLURM_NTASKS_PER_NODE": str(TASKS),
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
    }
    return [
        subprocess.Popen(
            words,
            cwd=where,
            env={
                **os.environ,
                **slurm,
                "PYTHONPATH": str(ROOT),
                "PATH": path,
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(TASKS)
    ]


def ends(tasks: list["subprocess.Popen[str]"]) -> tuple[list[int], str]:
    """Exit codes, and what they said."""
    try:
        said = "\n".join(task.communicate(timeout=900)[0] for task in tasks)
    finally:
        for task in tasks:
            task.kill()
    return [task.returncode for task in tasks], said


def prepared(where: Path) -> Path:
    write_tiny_world(where / "data")
    (where / "configs").symlink_to(ROOT / "configs")
    return where


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_job_that_is_queued_again_goes_on(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    whole = prepared(tmp_path / "whole")
    codes, said = ends(start(whole, 4711))
    assert codes == [0, 0], said

    stopped = prepared(tmp_path / "stopped")
    tasks = start(stopped, 4712)
    samples = stopped / "runs/policy/ppo_lora/samples.jsonl"
    while not samples.exists() and all(task.poll() is None for task in tasks):
        time.sleep(0.05)
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
    codes, said = ends(tasks)
    assert codes == [143, 143], said
    assert asked.read_text() == "requeue 4712\n", "by one of them"
    assert "SLURM's signal: saved" in said
    codes, said = ends(start(stopped, 4712))
    assert codes == [0, 0], said
    assert "Going on after iteration" in said
    runs = (each / "runs/policy/ppo_lora" for each in (whole, stopped))
    ours, theirs = (checkpoint_of(run) for run in runs)
    for state in (ours, theirs):
        del state["callbacks"]  # the size of metrics.jsonl is among them, which holds seconds
    assert difference(ours, theirs) is None
    files = [
        (each / "runs/policy/ppo_lora/samples.jsonl").read_bytes() for each in (whole, stopped)
    ]
    assert files[0] == files[1]
