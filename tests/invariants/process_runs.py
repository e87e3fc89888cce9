"""Short runs of each kind of module, by one process or two. Not a test: `test_processes.py` starts it.

Each process writes `rank-<r>.pt`: its whole trainable parameters, how far they moved, its rollouts, and what it had
logged after each step and validation.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loops import utilities
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_rlhf.models import LoraSpec, ModelSpec, ValueAdapter, ValueModel, sharding
from lit_rlhf.modules import (
    DistillationPolicyModule,
    PolicyModule,
    PPOPolicyModule,
    PreferenceModule,
    RewardModelModule,
    RLHFModule,
    SupervisedModule,
    TeacherModel,
    Updates,
)
from lit_rlhf.modules.group import GRPOPolicyModule
from lit_rlhf.objectives import TDPO1, WPO, AdaptiveKL, TruncatedImportance, WeightedSum
from lit_rlhf.rewards import LengthReward, ModelReward, NormalizedReward
from lit_rlhf.rollout import Ahead, DiskSync, RolloutRequest, Sampling, VLLMServerEngine
from tests.invariants.forked_runs import do, make_trainer
from tests.invariants.process_others import callbacks_of, other_data, other_makers
from tests.invariants.resume_runs import make_data

BATCHES = 2
WINDOWED = {
    "model_type": "mistral",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 29,
}
"""In the first iteration the rows of one process alone are longer than the window."""
DATA = {
    "sft": "sft",
    "reward": "reward",
    **dict.fromkeys(("dpo", "tdpo", "orpo", "tokens", "moving", "beta"), "dpo"),
}
"""Of the kinds that don't sample, by the first part of their name."""
Rollouts = list[dict[tuple[int, ...], list[list[int]]]]
"""For each iteration: the tokens of a prompt, and of its samples."""


def make_module(kind: str, world: Path, urls: Sequence[str] = ()) -> RLHFModule:
    """In full where the name says nothing; "lora" and "nf4" put all roles on one base. "vllm" samples with
    servers, "ahead" a step ahead."""
    model, lora = str(world / "tiny-model"), LoraSpec(rank=2)
    spec = ModelSpec(name=model)
    on_one_base = ModelSpec(
        name=model, lora=lora, quantization="nf4" if kind == "ppo-nf4" else "none"
    )
    shared: dict[str, Any] = {
        "optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-3, eps=1e-5),
        "seed": 5,
    }
    acting = shared | {
        "sampling": Sampling(
            max_new_tokens=12, stop_token_ids=list(range(0, 267, 6))
        ),  # so that lengths differ
        # 48: ranks divide their rows into different numbers of parts
        "updates": Updates(epochs=2, minibatches=2, microbatch_tokens=48),
    }
    # Never reached: a loss without log-probs has them computed by one more forward, right before the step.
    watching_kl = acting | {"updates": replace(acting["updates"], target_kl=1e3)}
    adapter = NormalizedReward(ModelReward(str(world / "reward.ckpt"), batch_tokens=64))
    whole = ModelReward(str(world / "reward.ckpt"), batch_tokens=48, share_base=False)
    kl = AdaptiveKL(init=0.1, target=0.01, horizon=10)
    corrected = acting | {
        "recompute_logprobs": True,
        "importance_correction": TruncatedImportance(),
    }
    makers: dict[str, Callable[[], RLHFModule]] = {
        "sft": lambda: SupervisedModule(spec, **shared),
        "reward-lora": lambda: RewardModelModule(on_one_base, **shared),
        "reward": lambda: RewardModelModule(spec, **shared),
        "dpo": lambda: PreferenceModule(spec, **shared),
        "tdpo": lambda: PreferenceModule(spec, WeightedSum([TDPO1(), WPO()]), **shared),
        "tdpo-lora": lambda: PreferenceModule(on_one_base, WeightedSum([TDPO1(), WPO()]), **shared),
        "ppo": lambda: PPOPolicyModule(
            spec, whole, value=ValueModel(dtype="float32"), recompute_logprobs=True, **acting
        ),
        "ppo-lora": lambda: PPOPolicyModule(
            on_one_base, adapter, value=ValueAdapter(), kl=kl, **acting
        ),
        "ppo-nf4": lambda: PPOPolicyModule(
            on_one_base, adapter, value=ValueAdapter(), kl=kl, **acting
        ),
        "vllm-lora": lambda: GRPOPolicyModule(
            on_one_base,
            LengthReward(),
            num_samples=3,
            engine=VLLMServerEngine(list(urls)),
            **corrected,
        ),
        "ahead": lambda: GRPOPolicyModule(
            spec,
            LengthReward(),
            num_samples=3,
            engine=Ahead(VLLMServerEngine(list(urls), sync=DiskSync())),
            **corrected,
        ),
        "vllm": lambda: GRPOPolicyModule(
            spec,
            whole,
            num_samples=3,
            engine=VLLMServerEngine(list(urls), sync=DiskSync()),
            recompute_logprobs=True,
            **acting,
        ),
        "grpo": lambda: GRPOPolicyModule(spec, whole, num_samples=3, **acting),
        "grpo-window": lambda: GRPOPolicyModule(
            ModelSpec(config=WINDOWED, tokenizer=model, init_seed=7),
            LengthReward(),
            num_samples=3,
            **acting,
        ),
        "distill": lambda: DistillationPolicyModule(
            spec, LengthReward(), teacher=another_teacher(world), num_samples=3, **watching_kl
        ),
    }
    return {**makers, **other_makers(world, shared, acting)}[kind]()


def another_teacher(world: Path) -> TeacherModel:
    """A model of random weights that reads the same tokens."""
    model = world / "tiny-model"
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return TeacherModel(ModelSpec(config=config, tokenizer=str(model), init_seed=7))


def record_rollouts(module: RLHFModule) -> Rollouts:
    """What this process samples in training."""
    rollouts: Rollouts = []
    if not isinstance(module, PolicyModule):
        return rollouts
    generate = module.engine.generate

    def recorded(backbone: Any, request: RolloutRequest) -> Any:
        found = generate(backbone, request)
        if module.trainer.training:
            rows = zip(request.prompts.ids, request.prompts.mask, strict=True)
            prompts = [tuple(ids[mask].tolist()) for ids, mask in rows]
            samples = [
                ids[mask].tolist() for ids, mask in zip(found.tokens, found.mask, strict=True)
            ]
            each = request.num_samples
            rollouts.append(
                {prompt: samples[i * each : (i + 1) * each] for i, prompt in enumerate(prompts)}
            )
        return found

    module.engine.generate = recorded  # type: ignore[method-assign]
    return rollouts


def record_passes() -> list[tuple[int, int]]:
    """How many passes this process would make through sharded weights at a time, and how many all make."""
    passes: list[tuple[int, int]] = []
    agreed = sharding.agreed

    def recorded(module: torch.nn.Module, number: int) -> int:
        found = agreed(module, number)
        passes.append((int(number), found))
        return found

    sharding.agreed = recorded
    return passes


class Log(Callback):
    """The metrics of each step and validation."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._add(trainer)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self._add(trainer)

    def _add(self, trainer: Trainer) -> None:
        self.lines.append({name: float(v) for name, v in trainer.callback_metrics.items()})


def trainable(module: RLHFModule) -> dict[str, Tensor]:
    """Whole trainable parameters, copied."""
    found = {
        name: parameter.detach()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    return {
        name: (w.full_tensor() if isinstance(w, DTensor) else w).cpu().clone()
        for name, w in found.items()
    }


def train(run: dict[str, Any], rank: int) -> None:
    """One process of one run."""
    world = Path(run["world"])
    kind = run["module"]
    module = make_module(kind, world, run.get("urls", ()))
    rollouts, passes, log = record_rollouts(module), record_passes(), Log()
    trainer = make_trainer(
        run,
        max_epochs=1,
        limit_train_batches=BATCHES,
        enable_checkpointing=False,
        callbacks=[*callbacks_of(kind), log],
    )
    before: dict[str, Tensor] = {}
    module.on_train_start = lambda: before.update(trainable(module))  # type: ignore[method-assign]
    data = DATA.get(kind.partition("-")[0], "ppo")
    rows: Any = other_data(kind, world, run["ranks"])
    rows = rows or make_data(data, world, run["ranks"], workers=0)
    if kind == "head" and run["strategy"] == "fsdp2":
        utilities._distributed_is_initialized = lambda: (
            False
        )  # else Lightning takes care, of gloo alone
        trainer.validate(module, datamodule=rows, verbose=False)
    trainer.fit(module, datamodule=rows)
    if kind == "reward-lora":
        trainer.save_checkpoint(
            world / "reward.ckpt", weights_only=False
        )  # for the policies that come after
    after = trainable(module)
    moved = max(float((after[name] - before[name]).abs().max()) for name in after)
    found = {"parameters": after, "moved": moved, "rollouts": rollouts, "metrics": log.lines}
    torch.save(found | {"passes": passes}, f"rank-{rank}.pt")


if __name__ == "__main__":
    do(Path(sys.argv[1]), train)
