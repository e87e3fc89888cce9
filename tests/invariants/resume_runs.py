"""Runs that kill themselves, and runs that go on from what is left. Not a test: `test_resume.py` starts it."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from lit_rlhf import files
from lit_rlhf.callbacks import IterationCheckpoint, MetricsFile, SampleTable
from lit_rlhf.data import (
    DemonstrationDataModule,
    FileSource,
    PreferenceDataModule,
    PromptDataModule,
)
from lit_rlhf.models import LoraSpec, ModelSpec, ValueAdapter
from lit_rlhf.modules import (
    PolicyModule,
    PPOPolicyModule,
    PreferenceModule,
    RewardModelModule,
    RLHFModule,
    SupervisedModule,
    Updates,
    ValueLoss,
)
from lit_rlhf.modules.group import GRPOPolicyModule
from lit_rlhf.objectives import AdaptiveKL, BetaDPO, TruncatedImportance
from lit_rlhf.rewards import LengthReward, NormalizedReward
from lit_rlhf.rollout import Ahead, Sampling, VLLMServerEngine
from tests.invariants.forked_runs import do, make_trainer

EPOCHS, BATCHES = 2, 5
ITERATIONS = EPOCHS * BATCHES

POLICIES = ("ppo", "grpo")
MODULES = ("sft", "reward", "dpo", *POLICIES)
SAMPLING = (*POLICIES, "ahead")
"""The last by servers, one step ahead."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def make_module(kind: str, model: Path, urls: Sequence[str] = ()) -> RLHFModule:
    """Each with all the state that it can have: schedules, running moments, controllers, dropout."""
    dropout = 0.0 if kind in SAMPLING else 0.2
    spec = ModelSpec(name=str(model), lora=LoraSpec(rank=2, dropout=dropout))

    def optimizer(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=3e-3)

    def scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))

    shared: dict[str, Any] = {"optimizer": optimizer, "lr_scheduler": scheduler, "seed": 5}
    if kind == "sft":
        return SupervisedModule(spec, **shared)
    if kind == "reward":
        return RewardModelModule(spec, **shared)
    if kind == "dpo":
        return PreferenceModule(spec, loss=BetaDPO(), **shared)
    shared |= {
        "reward": NormalizedReward(LengthReward(target=4.0, scale=2.0)),
        "sampling": Sampling(max_new_tokens=6),
        "kl": AdaptiveKL(init=0.1, target=0.01, horizon=10),
        "updates": Updates(epochs=2, minibatches=2),
    }
    if kind == "ahead":
        shared |= {
            "engine": Ahead(VLLMServerEngine(list(urls))),
            "recompute_logprobs": True,
            "importance_correction": TruncatedImportance(),
        }
    if kind in ("grpo", "ahead"):
        return GRPOPolicyModule(spec, num_samples=3, **shared)
    return PPOPolicyModule(spec, value=ValueAdapter(), value_loss=ValueLoss(warmup=1), **shared)


def make_data(kind: str, world: Path, ranks: int, workers: int) -> LightningDataModule:
    """Five global batches of four rows an epoch, however many processes share them."""
    module, name = {
        "sft": (DemonstrationDataModule, "demonstrations"),
        "reward": (PreferenceDataModule, "preferences"),
        "dpo": (PreferenceDataModule, "preferences"),
    }.get(kind, (PromptDataModule, "prompts"))
    return module(
        train=FileSource(str(world / f"{name}.jsonl")),
        val=FileSource(str(world / f"{name}_val.jsonl")),
        tokenizer=str(world / "tiny-model"),
        batch_size=4 // ranks,
        num_workers=workers,
        seed=3,
        cache_dir=str(world / "cache"),
    )


def arm(module: RLHFModule, point: str, iteration: int) -> None:
    """Make the run kill itself at a point of an iteration (counted from 0)."""
    if point in ("writing", "replaced"):
        arm_checkpoint(point, iteration)
        return
    model_forward, calls = type(module).forward, 0

    def now() -> bool:
        return module.trainer.training and module.trainer.fit_loop.total_batch_idx == iteration

    def on_phase(name: str, done: int, total: int) -> None:
        if point == "minibatch" and now() and name == "update" and done == 1:
            die()

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += now()
        if point == "step" and calls == 1 and now():
            die()
        return model_forward(module, *args, **kwargs)

    if isinstance(module, PolicyModule):
        module.phases.listeners.append(on_phase)
        if point == "rollout":
            arm_rollout(module, now)
    else:
        module.forward = counted  # type: ignore[method-assign]


def arm_rollout(module: PolicyModule, now: Callable[[], bool]) -> None:
    generate = module.engine.generate

    def deadly(backbone: Any, *args: Any, **kwargs: Any) -> Any:
        logits, calls = backbone.logits, 0

        def third(hidden: torch.Tensor, *options: Any, **named: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == 3 and now():
                die()
            return logits(hidden, *options, **named)

        backbone.logits = third
        try:
            return generate(backbone, *args, **kwargs)
        finally:
            del backbone.logits

    module.engine.generate = deadly  # type: ignore[method-assign]


def arm_checkpoint(point: str, iteration: int) -> None:
    """While the checkpoint of an iteration is being written, or right after it took its place."""
    save, sync = torch.save, files.sync
    name = f"iteration-{iteration:08d}.ckpt"

    def half(checkpoint: Any, file: Any, **options: Any) -> None:
        save(checkpoint, file, **options)
        if name in getattr(file, "name", "") and point == "writing":
            file.flush()
            file.truncate(file.tell() // 2)
            die()

    def after(directory: Path) -> None:
        sync(directory)
        if point == "replaced" and (directory / name).exists():
            die()

    torch.save = half  # type: ignore[assignment]
    files.sync = after


def train(run: dict[str, Any], rank: int) -> None:
    """One process of one run."""
    world, ranks = Path(run["world"]), run["ranks"]
    callbacks = [
        IterationCheckpoint("checkpoints", every_n_iterations=2),
        MetricsFile("records"),
        *([SampleTable(dirpath="records")] if run["module"] in SAMPLING else []),
    ]
    trainer = make_trainer(run, max_epochs=EPOCHS, val_check_interval=2, callbacks=callbacks)
    module = make_module(run["module"], world / "tiny-model", run.get("urls", ()))
    kill = run.get("kill")
    if kill is not None and rank == kill.get("rank", 0):
        arm(module, kill["point"], kill["iteration"])
    trainer.fit(
        module,
        datamodule=make_data(run["module"], world, ranks, run["workers"]),
        ckpt_path=run.get("ckpt_path"),
    )


if __name__ == "__main__":
    do(Path(sys.argv[1]), train)
