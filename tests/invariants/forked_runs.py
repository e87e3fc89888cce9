"""Runs of a plan one after another, each in processes of its own: what scripts that tests start have in common.

    python <script> plan.json

Processes are forked, so that imports are paid once. A run with several has one per rank, joined by gloo as torchrun
would start them; when one dies the others are killed, as torchrun would. Exit codes, negative for signals, go to
`<plan>.out`.
"""

import json
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets  # noqa: F401 - imported here, once, and not by each process
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import (
    DDPStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from tests.card import device

Train = Callable[[dict[str, Any], int], None]
"""Does one process's part of a run, given its rank."""


def make_trainer(run: dict[str, Any], **options: Any) -> Trainer:
    """A quiet trainer with the run's strategy."""
    ranks = run["ranks"]
    strategies: dict[str, Callable[[], Strategy | str]] = {
        "one": lambda: SingleDeviceStrategy(torch.device("cpu")),
        "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
        "fsdp2": lambda: "fsdp2",
        "card": device.strategy,
    }
    return Trainer(
        accelerator="auto" if run["strategy"] == "card" else "cpu",
        devices=ranks,
        strategy=strategies[run["strategy"]](),
        plugins=[TorchElasticEnvironment()] if ranks > 1 else [],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **options,
    )


def do(plan: Path, train: Train) -> None:
    """All runs of a plan."""
    get_checkpoint_conversion_mapping(
        "llama"
    )  # a third of a second, which transformers takes in each process otherwise
    codes = []
    for run in json.loads(plan.read_text()):
        port = _free_port()
        codes.append(_finish([_start(run, rank, port, train) for rank in range(run["ranks"])]))
    plan.with_suffix(".out").write_text(json.dumps(codes))


def _start(run: dict[str, Any], rank: int, port: int, train: Train) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking with threads, of which there are none yet
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        _settle(run, rank, port)
        train(run, rank)
        code = 0
    except BaseException:  # noqa: BLE001 - a forked child must end here, whatever happens
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _settle(run: dict[str, Any], rank: int, port: int) -> None:
    directory = Path(run["directory"])
    directory.mkdir(parents=True, exist_ok=True)
    os.chdir(directory)
    log = (directory / f"log-{rank}.txt").open("a", buffering=1)
    sys.stdout = sys.stderr = log
    os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    if run["strategy"] == "card":
        device.build()
    torch.manual_seed(os.getpid())  # nothing may depend on the global generator
    if run["ranks"] > 1:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(run["ranks"]),
            "LOCAL_WORLD_SIZE": str(run["ranks"]),
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "test",
        }


def _finish(children: list[int]) -> list[int]:
    """Exit codes; when one dies, the others are killed."""
    codes = dict.fromkeys(children, 0)
    while children:
        child, status = os.wait()
        children = [other for other in children if other != child]
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child] != 0:
            for other in children:
                os.kill(other, signal.SIGKILL)
    return list(codes.values())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
