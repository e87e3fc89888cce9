"""PPO with lit_rlhf: policy, reference, reward and value as roles on one nf4 base.

python -m benchmarks.memory.one_base <settings> [recompute]
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.processes import report
from benchmarks.quiet import History, quiet_trainer, silence
from benchmarks.workloads.settings import TARGETS, Settings
from benchmarks.workloads.shared import start
from lit_rlhf.data import FileSource, PromptDataModule, PromptOnly
from lit_rlhf.models import LoraSpec, ModelSpec, ValueAdapter
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


def main() -> None:
    settings = Settings.from_command_line()
    start(settings)
    silence()
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
    history = History()
    trainer = quiet_trainer(history, limit_train_batches=settings.steps)
    trainer.fit(policy, datamodule=prompts)
    assert policy.backbone.adapters == ("policy", "reward", "value")
    # What shows that the work was done.
    names = {"scores": "train/objective/scores", "lengths": "train/completions/mean_length"}
    report({key: history.of(name) for key, name in names.items()})


if __name__ == "__main__":
    main()
