"""Runs of two processes: one gets NaN, or both go on with other options. Not a test: `test_process_steps.py` starts it.

Each process writes `rank-<r>.pt`: what its guard counted, how far the weights moved in each iteration, what it raised.
"""

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from lit_rlhf.errors import LitRLHFError
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import (
    PolicyModule,
    RLHFModule,
    Steps,
    SupervisedModule,
    Updates,
    minibatches,
)
from lit_rlhf.modules.group import GRPOPolicyModule
from lit_rlhf.rewards import LengthReward
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import LossOutput
from tests.invariants.forked_runs import do, make_trainer
from tests.invariants.process_runs import trainable
from tests.invariants.resume_runs import make_data
from tests.unit.modules.device_memory import SaidMemory


def make_module(run: dict[str, Any]) -> RLHFModule:
    """In full; a policy takes as many steps an iteration as the run says."""
    spec = ModelSpec(name=str(Path(run["world"]) / "tiny-model"))
    kind = getattr(torch.optim, run.get("optimizer", "AdamW"))
    shared: dict[str, Any] = {"optimizer": lambda groups: kind(groups, lr=run["lr"])}
    if run["module"] == "sft":
        return SupervisedModule(spec, steps=Steps(max_skipped=run["most"]), **shared)
    return GRPOPolicyModule(
        spec,
        LengthReward(target=4.0, scale=2.0),
        num_samples=2,
        sampling=Sampling(max_new_tokens=6),
        updates=Updates(minibatches=run["minibatches"], max_skipped=run["most"]),
        **shared,
    )


def poison(module: RLHFModule, iterations: list[int]) -> None:
    """Make this process's losses NaN in some iterations."""
    loss: Callable[..., LossOutput] = module.loss  # type: ignore[assignment]

    def poisoned(*args: Any) -> LossOutput:
        output = loss(*args)
        bad = module.trainer.fit_loop.total_batch_idx in iterations
        return replace(output, loss=output.loss * math.nan) if bad else output

    module.loss = poisoned  # type: ignore[assignment]


class Movement(Callback):
    """How far the weights move in each iteration; NaN where they are not finite."""

    def __init__(self) -> None:
        self.moved: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
        self.before = trainable(module)

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        after = trainable(module)
        gaps = [(after[name] - weight).abs().max() for name, weight in self.before.items()]
        self.moved.append(float(torch.stack(gaps).max()))


def train(run: dict[str, Any], rank: int) -> None:
    """One process of one run."""
    module, movement = make_module(run), Movement()
    if run.get("free") and isinstance(module, PolicyModule):
        minibatches.START, minibatches.LEAST = 24, 8
        SaidMemory(run["free"][rank]).watch(module)
    if rank == 1 and run["nan"]:
        poison(module, run["nan"])
    trainer = make_trainer(
        run,
        max_epochs=2 if run.get("go_on") else 1,
        limit_train_batches=run["batches"],
        limit_val_batches=0,
        enable_checkpointing=False,
        callbacks=[movement],
    )
    world, error = Path(run["world"]), ""
    data = make_data(run["module"], world, run["ranks"], workers=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(module, datamodule=data, ckpt_path=run.get("go_on"))
        except LitRLHFError as raised:
            error = f"{type(raised).__name__}: {raised}"
    if run.get("save"):
        trainer.save_checkpoint(run["save"], weights_only=False)
    optimizers = trainer.optimizers
    found = {
        "guard": module.guard.state_dict(),
        "moved": movement.moved,
        "size": module.microbatch_size.tokens if isinstance(module, PolicyModule) else None,
        "error": error,
        "said": " ".join(str(warning.message) for warning in caught),
        "lr": [group["lr"] for each in optimizers for group in each.param_groups],
        "steps": [float(state["step"]) for each in optimizers for state in each.state.values()],
        "parameters": {} if error else trainable(module),
    }
    torch.save(found, f"rank-{rank}.pt")


if __name__ == "__main__":
    do(Path(sys.argv[1]), train)
