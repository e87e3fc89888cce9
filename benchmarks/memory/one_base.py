"""PPO with lit_rlhf: policy, reference, reward and value as roles on one nf4 base.

python -m benchmarks.memory.one_base <settings> [recompute]
"""

import logging
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.peers.processes import report
from benchmarks.quiet import quiet_trainer
from benchmarks.workloads.settings import TARGETS, Settings
from benchmarks.workloads.shared import start
from lit_rlhf.data import FileSource, PromptDataModule, PromptOnly
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec, ValueAdapter, export_reward
from lit_rlhf.modules import PPOPolicyModule, Updates
from lit_rlhf.objectives import FixedKL
from lit_rlhf.rewards import ModelReward
from lit_rlhf.rollout import Sampling


def spec(settings: Settings, recompute: bool = False) -> ModelSpec:
    """The base in nf4, with the peer's LoRA; `recompute` keeps a layer's input for backward and nothing else of it."""
    lora = LoraSpec(rank=settings.rank, alpha=2.0 * settings.rank, target_modules=TARGETS)
    dtype: Any = settings.dtype
    return ModelSpec(
        name=settings.model,
        dtype=dtype,
        quantization="nf4",
        lora=lora,
        gradient_checkpointing=recompute,
    )


def write_reward_adapter(settings: Settings, target: Path) -> None:
    """An adapter and its head as a reward model trained on the same base would leave them."""
    backbone = Backbone.load(spec(settings), lm_head=False)
    backbone.add_adapter("reward")
    backbone.add_head("reward")
    export_reward(backbone, target, merge=False)


class Watch(Callback):
    """What shows that the work was done: each iteration's mean score and mean length."""

    def __init__(self) -> None:
        self.curve: list[float] = []
        self.lengths: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: object
    ) -> None:
        """An iteration has ended."""
        self.curve.append(float(trainer.callback_metrics["train/objective/scores"]))
        self.lengths.append(float(trainer.callback_metrics["train/completions/mean_length"]))


def main() -> None:
    settings = Settings.from_command_line()
    start(settings)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    policy = PPOPolicyModule(
        spec(settings, recompute="recompute" in sys.argv[2:]),
        ModelReward(settings.reward_model, share_base=True),
        value=ValueAdapter(start="reward"),
        updates=Updates(epochs=settings.epochs),
        kl=FixedKL(0.05),
        sampling=Sampling(max_new_tokens=settings.new_tokens),
        optimizer=partial(torch.optim.AdamW, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0),
    )
    prompts = PromptDataModule(
        FileSource(settings.data),
        tokenizer=settings.model,
        format=PromptOnly(columns=[]),
        batch_size=settings.batch,
        cache_dir=str(Path(settings.data).parent / "cache"),
    )
    watch = Watch()
    trainer = quiet_trainer(watch, limit_train_batches=settings.steps)
    trainer.fit(policy, datamodule=prompts)
    assert policy.backbone.adapters == ("policy", "reward", "value")
    report({"scores": watch.curve, "lengths": watch.lengths})


if __name__ == "__main__":
    main()
