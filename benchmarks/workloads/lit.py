"""SFT, reward model, DPO, GRPO, RLOO and PPO with lit_rlhf, through the Trainer as users run it."""

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.peers.processes import report
from benchmarks.workloads.settings import TARGETS, Settings, vowel_share
from benchmarks.workloads.shared import Clock, fill_adapters, head_weight, start
from lit_rlhf.callbacks import PhaseTimer
from lit_rlhf.data import DemonstrationDataModule, PreferenceDataModule, PromptDataModule, PromptOnly, RowsSource
from lit_rlhf.models import LoraSpec, ModelSpec, ValueHead, ValueModel
from lit_rlhf.modules import (
    GRPOPolicyModule,
    PPOPolicyModule,
    PreferenceModule,
    RewardModelModule,
    RLOOPolicyModule,
    SupervisedModule,
)
from lit_rlhf.objectives import FixedKL
from lit_rlhf.rewards import FunctionReward, ModelReward
from lit_rlhf.rollout import Sampling

OFFLINE = {"sft": SupervisedModule, "reward": RewardModelModule, "dpo": PreferenceModule}


class Watch(Callback):
    """Draws the same initial weights as the peer, times steps and keeps the loss or the reward."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.name = name
        self.clock = Clock()
        self.curve: list[float] = []
        self.lengths: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill adapters and the reward head."""
        fill_adapters(pl_module.named_parameters(), self.settings.seed)
        if self.settings.workload == "reward":
            head = pl_module.backbone.heads["reward"]
            head.weight.data.copy_(head_weight(head.weight.numel(), self.settings.seed).view_as(head.weight))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """A step has ended."""
        self.clock.tick()
        self.curve.append(float(trainer.callback_metrics[self.name]))
        self.lengths.append(float(trainer.callback_metrics.get("train/completions/mean_length", 0.0)))


def spec(settings: Settings) -> ModelSpec:
    """The base in its dtype, and the same LoRA as the peer's."""
    lora = LoraSpec(rank=settings.rank, alpha=2.0 * settings.rank, target_modules=TARGETS)
    return ModelSpec(name=settings.model, dtype=settings.dtype, lora=lora)  # type: ignore[arg-type]


def build(settings: Settings) -> LightningModule:
    """The module of a workload."""
    adamw = partial(torch.optim.AdamW, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0)
    if settings.workload in OFFLINE:
        return OFFLINE[settings.workload](spec(settings), optimizer=adamw)
    sampling = Sampling(max_new_tokens=settings.new_tokens)
    if settings.workload in ("grpo", "rloo"):
        module, beta = (GRPOPolicyModule, 0.04) if settings.workload == "grpo" else (RLOOPolicyModule, 0.05)
        reward = FunctionReward(lambda responses: [vowel_share(text) for text in responses])
        return module(
            spec(settings),
            reward,
            num_samples=settings.num_samples,
            kl=FixedKL(beta),
            sampling=sampling,
            optimizer=adamw,
        )
    alike = settings.workload == "ppo"
    return PPOPolicyModule(
        spec(settings),
        ModelReward(settings.reward_model, dtype=settings.dtype),  # type: ignore[arg-type]
        value=ValueModel() if alike else ValueHead(),
        num_epochs=settings.epochs,
        kl=FixedKL(0.05),
        sampling=sampling,
        optimizer=adamw,
    )


def batches(settings: Settings) -> Any:
    """A loader that gives the rows in the order of the file."""
    kinds = {"sft": DemonstrationDataModule, "reward": PreferenceDataModule, "dpo": PreferenceDataModule}
    kind = kinds.get(settings.workload, PromptDataModule)
    own: dict[str, Any] = {"format": PromptOnly(columns=[])} if kind is PromptDataModule else {}
    names = {"sft": ["prompt", "completion"], "reward": ["prompt", "chosen", "rejected"]}
    wanted = names.get(settings.workload, names["reward"] if settings.workload == "dpo" else ["prompt"])
    rows = [{name: row[name] for name in wanted} for row in settings.rows()]
    cache = str(Path(settings.data).parent / "cache")
    data = kind(
        test=RowsSource(rows),
        tokenizer=settings.model,
        batch_size=settings.batch,
        invalid="error",
        cache_dir=cache,
        **own,
    )
    data.prepare_data()
    data.setup("test")
    return data.test_dataloader()


def main() -> None:
    settings = Settings.from_command_line()
    start(settings)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    offline = settings.workload in OFFLINE
    watch = Watch(settings, "train/loss" if offline else "train/objective/scores")
    timer = PhaseTimer()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=1.0 if offline else None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[timer, watch],
    )
    trainer.fit(build(settings), batches(settings))
    samples = settings.batch * settings.num_samples
    result = {"seconds": watch.clock.seconds(), "samples": samples, "curve": watch.curve, "phases": timer.totals}
    if not offline:
        result["tokens"] = [length * samples for length in watch.lengths[1:]]
    report(result)


if __name__ == "__main__":
    main()
