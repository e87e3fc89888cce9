"""The three stages, each through the library's own modules, DataModules and callbacks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LinearLR, OneCycleLR

from lit_rlhf.callbacks import ExportModel, MetricsFile, PhaseProgressBar, RunRecord, SampleTable
from lit_rlhf.data import (
    DemonstrationDataModule,
    PreferenceDataModule,
    PromptDataModule,
    RowsSource,
)
from lit_rlhf.demo.config import DemoConfig
from lit_rlhf.demo.world_data import world_tokenizer
from lit_rlhf.files import read_lines
from lit_rlhf.internals.lightning import callbacks_of
from lit_rlhf.models import ModelSpec, ValueModel
from lit_rlhf.modules import (
    PolicyModule,
    PPOPolicyModule,
    RewardModelModule,
    SupervisedModule,
    Updates,
    ValueLoss,
)
from lit_rlhf.objectives import BradleyTerry, FixedKL
from lit_rlhf.rewards import ModelReward
from lit_rlhf.rollout import Sampling

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class RewardResult:
    """What the reward model says of held-out pairs.

    Attributes:
        pairs: The rows, with the true `utility_margin`.
        margins: (n,) score of the chosen minus score of the rejected text.
    """

    pairs: Rows
    margins: Tensor


@dataclass(frozen=True)
class PolicyResult:
    """What the policy wrote, and how training went.

    Attributes:
        before: Samples of the initial policy on held-out prompts: `prompt`, `response`, `score`.
        after: The same of the trained policy.
        kl_after: Mean KL of the trained policy to the initial one on those prompts, nats per completion.
        metrics: What was logged, one row per iteration.
        rollouts: Samples of all training iterations, with `iteration`.
    """

    before: Rows
    after: Rows
    kl_after: float
    metrics: Rows
    rollouts: Rows


class _Margins(Callback):
    """Keeps the margins of the validation that ends the training, by row."""

    def __init__(self) -> None:
        self.margins: dict[int, Tensor] = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score of the chosen minus score of the rejected text."""
        chosen, rejected = outputs["scores"].unbind(-1)
        self.margins.update(zip(batch["index"].tolist(), chosen - rejected, strict=True))


class Stages:
    """The stages of one run, to be called in order.

    Args:
        output: Directory of the run.
        config: Sizes and rates.
        seed: Of the world's data, the weights and the rollouts.
    """

    def __init__(self, output: Path, config: DemoConfig, seed: int) -> None:
        self.output = output
        self.config = config
        self.seed = seed
        self.world = replace(config.world, seed=seed)
        self.tokenizer = str(output / "tokenizer")
        self.initial = output / "sft" / "export"
        self.reward_model = output / "reward" / "export"
        world_tokenizer().save_pretrained(self.tokenizer)

    def supervised(self) -> None:
        """Train the initial policy on demonstrations."""
        stage = self.config.supervised
        data = DemonstrationDataModule(
            RowsSource(self.world.demonstrations(stage.demonstrations)),
            **self._data_options(stage.batch_size),
        )
        module = SupervisedModule(
            ModelSpec(
                config=dict(self.config.model), tokenizer=self.tokenizer, init_seed=self.seed
            ),
            optimizer=_adamw(stage.lr),
            lr_scheduler=_warm_up_and_decay(stage.lr, stage.demonstrations // stage.batch_size),
            seed=self.seed,
        )
        self._trainer("sft").fit(module, datamodule=data)

    def reward(self) -> RewardResult:
        """Train the reward model on the raters' choices, and ask it about held-out ones."""
        stage = self.config.reward
        heldout = self.world.pairs(stage.heldout_pairs, "heldout")
        data = PreferenceDataModule(
            RowsSource(self.world.pairs(stage.pairs, raters=stage.raters)),
            RowsSource(heldout),
            eval_batch_size=100,
            **self._data_options(stage.batch_size),
        )
        module = RewardModelModule(
            ModelSpec(name=str(self.initial), init_seed=self.seed),
            loss=BradleyTerry(center_coefficient=0.001),
            optimizer=_adamw(stage.lr),
            lr_scheduler=_warm_up_and_decay(stage.lr, stage.pairs // stage.batch_size),
            seed=self.seed,
        )
        judged = _Margins()
        self._trainer("reward", judged).fit(module, datamodule=data)
        return RewardResult(
            heldout, torch.stack([judged.margins[index] for index in range(len(heldout))])
        )

    def policy(self) -> PolicyResult:
        """Train the policy against the reward model; sample held-out prompts before and after."""
        stage = self.config.policy
        data = PromptDataModule(
            RowsSource(self.world.prompts(stage.iterations * stage.prompts)),
            RowsSource(self.world.prompts(stage.heldout_prompts, "heldout")),
            eval_batch_size=stage.heldout_prompts,
            **self._data_options(stage.prompts),
        )
        module = self._policy_module()
        folder = self.output / "ppo"
        trainer = self._trainer("ppo", SampleTable(dirpath=str(folder)))
        before, _ = complete_heldout(trainer, module, data)
        trainer.fit(module, datamodule=data)
        after, kl = complete_heldout(trainer, module, data)
        metrics, rollouts = (
            [row for row in read_lines(folder / name) if row["stage"] == "train"]
            for name in ("metrics.jsonl", "samples.jsonl")
        )
        return PolicyResult(before, after, kl, metrics, rollouts)

    def _policy_module(self) -> PPOPolicyModule:
        stage = self.config.policy
        steps = stage.iterations * stage.num_epochs * stage.num_minibatches
        return PPOPolicyModule(
            ModelSpec(name=str(self.initial), init_seed=self.seed),
            reward=ModelReward(str(self.reward_model), normalize=True),
            value=ValueModel(),
            value_loss=ValueLoss(coef=0.5, lr=stage.value_lr),
            sampling=Sampling(max_new_tokens=stage.max_new_tokens),
            num_samples=stage.num_samples,
            updates=Updates(epochs=stage.num_epochs, minibatches=stage.num_minibatches),
            kl=FixedKL(stage.kl_coef),
            missing_eos_penalty=1.0,
            optimizer=_adamw(stage.lr),
            lr_scheduler=partial(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=steps),
            seed=self.seed,
        )

    def _data_options(self, batch_size: int) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer,
            "batch_size": batch_size,
            "seed": self.seed,
            "invalid": "error",
            "cache_dir": str(self.output / "cache"),
        }

    def _trainer(self, name: str, *callbacks: Callback) -> Trainer:
        folder = self.output / name
        return Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
            default_root_dir=folder,
            callbacks=[
                PhaseProgressBar(leave=True),
                *callbacks,
                MetricsFile(str(folder)),
                ExportModel(str(folder / "export")),
                RunRecord(),
            ],
        )


def _adamw(lr: float) -> Callable[..., Optimizer]:
    return partial(AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)


def _warm_up_and_decay(lr: float, steps: int) -> Callable[..., OneCycleLR]:
    return partial(
        OneCycleLR,
        max_lr=lr,
        total_steps=steps,
        pct_start=0.05,
        anneal_strategy="linear",
        cycle_momentum=False,
    )


def complete_heldout(
    trainer: Trainer, module: PolicyModule, data: PromptDataModule
) -> tuple[Rows, float]:
    """Samples on the held-out prompts (one batch), and their KL to the initial policy."""
    keep = _KeepSamples()
    callbacks_of(trainer).append(keep)
    trainer.validate(module, datamodule=data, verbose=False)
    callbacks_of(trainer).remove(keep)
    return keep.rows, float(trainer.callback_metrics["val/objective/kl"])


class _KeepSamples(Callback):
    """Of the last validation batch."""

    rows: Rows

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Keep them."""
        self.rows = outputs["samples"]
