"""The commands of docs/SCALING.md, on two "machines" that are this one, with a process each."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_rlhf.testing.tiny import write_tiny_world

ROOT = Path(__file__).parents[2]
TINY = ["-c", "configs/overlays/tiny.yaml", "--data.cache_dir", "cache"]


def documented(beginning: str) -> list[str]:
    """The command of the page that begins so, as a shell would split it."""
    blocks = re.findall(
        r"```(?:ba)?sh[^\n]*\n(.*?)```", (ROOT / "docs" / "SCALING.md").read_text(), flags=re.DOTALL
    )
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return shlex.split(next(line for line in lines if line.startswith(beginning)))


def run_on_two_machines(command: list[str], where: Path) -> list[str]:
    """Start it once for each machine; what they printed."""
    write_tiny_world(where / "data")
    (where / "configs").symlink_to(ROOT / "configs")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    started = [
        subprocess.Popen(
            command,
            cwd=where,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return said


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.ddp
@pytest.mark.slow
def test_fsdp2_by_name(tmp_path: Path) -> None:
    """On two machines, where Lightning's own default would take each for a group that holds whole parameters."""
    here = {"$HEAD:29500": f"127.0.0.1:{free_port()}"}
    command = [here.get(word, word) for word in documented("torchrun")]
    command[command.index("--nproc_per_node") + 1] = "1"
    command[command.index("configs/overlays/ddp.yaml")] = "configs/overlays/fsdp2.yaml"
    run_on_two_machines([*command, *TINY, "--model.reward", "LengthReward"], tmp_path)
    (checkpoint,) = (tmp_path / "runs/policy/ppo_lora/checkpoints").glob("*.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    assert state["lit_rlhf.IterationCheckpoint"]["world_size"] == 2


@pytest.mark.ddp
@pytest.mark.walk
def test_torchrun(tmp_path: Path) -> None:
    here = {"$HEAD:29500": f"127.0.0.1:{free_port()}"}
    command = [here.get(word, word) for word in documented("torchrun")]
    place = command.index("--nproc_per_node") + 1
    command[place] = (
        "1"  # two processes in all are enough; tiny.yaml asks for one on each machine, too
    )
    run_on_two_machines([*command, *TINY, "--model.reward", "LengthReward"], tmp_path)
    (checkpoint,) = (tmp_path / "runs/policy/ppo_lora/checkpoints").glob("*.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    assert state["lit_rlhf.IterationCheckpoint"]["world_size"] == 2
    assert state["lit_rlhf"]["state"]["iteration"] == 2
    samples = tmp_path / "runs/policy/ppo_lora/samples.jsonl"
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    first = [row["prompt"] for row in rows if row["stage"] == "train" and row["iteration"] == 0]
    assert len(first) == len(set(first)) == 8  # four prompts of each process
