"""SFT, reward model, DPO, GRPO, RLOO, PPO and distillation with lit_rlhf, through the Trainer as users run it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks.peers.processes import report
from benchmarks.quiet import quiet_trainer, silence
from benchmarks.workloads.arithmetic import Decoder
from benchmarks.workloads.peak import matmul_peaks
from benchmarks.workloads.settings import TARGETS, Settings, vowel_share
from benchmarks.workloads.shared import Clock, fill_adapters, head_weight, start
from lit_rlhf.callbacks import PhaseTimer
from lit_rlhf.data import (
    DemonstrationDataModule,
    PreferenceDataModule,
    PromptDataModule,
    PromptOnly,
    RowsSource,
)
from lit_rlhf.models import LoraSpec, ModelSpec, ValueModel
from lit_rlhf.modules import (
    DistillationPolicyModule,
    GRPOPolicyModule,
    PPOPolicyModule,
    PreferenceModule,
    RewardModelModule,
    RLOOPolicyModule,
    SupervisedModule,
    TeacherModel,
    Updates,
)
from lit_rlhf.objectives import FixedKL
from lit_rlhf.rewards import FunctionReward, ModelReward
from lit_rlhf.rollout import Sampling

_ALMOST_NONE = 1e-9
"""Weight of a student's own samples where it learns on given answers; 0 is refused."""
_PAIRS = (PreferenceDataModule, ["prompt", "chosen", "rejected"])
KINDS: dict[str, tuple[type[Any], list[str]]] = {
    "sft": (DemonstrationDataModule, ["prompt", "completion"]),
    "reward": _PAIRS,
    "dpo": _PAIRS,
}
"""Of the offline workloads: who reads their rows, and which columns."""
OFFLINE = {"sft": SupervisedModule, "reward": RewardModelModule, "dpo": PreferenceModule}


class Watch(Callback):
    """Draws the same initial weights as the peer; keeps each step's loss or reward, seconds by phase and arithmetic.

    Args:
        settings: What is run.
        name: The metric to keep.
        timer: Called before this callback.
    """

    def __init__(self, settings: Settings, name: str, timer: PhaseTimer) -> None:
        self.settings = settings
        self.name = name
        self.timer = timer
        self.clock = Clock()
        self.curve: list[float] = []
        self.lengths: list[float] = []
        self.phases: list[dict[str, float]] = []
        self.flops: list[dict[str, float]] = []
        self._decoder = Decoder.from_directory(settings.model, settings.rank)
        self._before: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill adapters and the reward head."""
        fill_adapters(pl_module.named_parameters(), self.settings.seed)
        if self.settings.workload == "reward":
            head = pl_module.backbone.heads["reward"]
            head.weight.data.copy_(
                head_weight(head.weight.numel(), self.settings.seed).view_as(head.weight)
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step has ended."""
        self.clock.tick()
        self.curve.append(float(trainer.callback_metrics[self.name]))
        length = float(trainer.callback_metrics.get("train/completions/mean_length", 0.0))
        self.lengths.append(length)
        totals = dict(self.timer.totals)
        self.phases.append(
            {name: seconds - self._before.get(name, 0.0) for name, seconds in totals.items()}
        )
        self._before = totals
        count = rollout_flops if self.settings.workload not in OFFLINE else offline_flops
        self.flops.append(count(self.settings, self._decoder, batch["branch_ids"], length))


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
        grouped = settings.workload == "grpo"
        return (GRPOPolicyModule if grouped else RLOOPolicyModule)(
            spec(settings),
            FunctionReward(lambda responses: [vowel_share(text) for text in responses]),
            num_samples=settings.num_samples,
            kl=FixedKL(0.04 if grouped else 0.05),
            sampling=sampling,
            optimizer=adamw,
        )
    if settings.workload == "distill":
        teacher = ModelSpec(name=settings.teacher, dtype=settings.dtype)  # type: ignore[arg-type]
        return DistillationPolicyModule(
            spec(settings),
            teacher=TeacherModel(teacher),
            lmbda=_ALMOST_NONE if settings.given else 1.0,
            sampling=sampling,
            optimizer=adamw,
        )
    alike = settings.workload == "ppo"
    # Where the reward model is an adapter, its default is the policy's base; a value head is the default as well.
    reward_model = ModelReward(settings.reward_model, dtype=settings.dtype if alike else None)  # type: ignore[arg-type]
    return PPOPolicyModule(
        spec(settings),
        reward_model,
        value=ValueModel() if alike else None,
        updates=Updates(epochs=settings.epochs),
        kl=FixedKL(0.05),
        sampling=sampling,
        optimizer=adamw,
    )


def offline_flops(
    settings: Settings, decoder: Decoder, branch_ids: Tensor, _: float
) -> dict[str, float]:
    """Arithmetic of the update on a batch, (B, L) ids of branches; DPO's includes the reference's forward pass."""
    update = 0.0
    for row in branch_ids:
        prompt, *branches = [int(n) for n in torch.bincount(row[row >= 0])]
        scored = 0 if settings.workload == "reward" else sum(branches)
        update += decoder.train(prompt, branches, scored)
        if settings.workload == "dpo":
            update += decoder.forward(prompt, branches, scored, adapted=False)
    return {"update": update}


def rollout_flops(
    settings: Settings, decoder: Decoder, branch_ids: Tensor, length: float
) -> dict[str, float]:
    """Arithmetic of rollout and update on a batch of prompts, each completion taken to have the mean length."""
    rollout = update = 0.0
    full = replace(decoder, rank=0)
    branches = [length] * settings.num_samples
    for row in branch_ids:
        prompt = int((row >= 0).sum())
        rollout += decoder.generate(prompt, branches)
        update += settings.epochs * decoder.train(prompt, branches, sum(branches))
        if settings.workload == "distill":
            update += decoder.forward(prompt, branches, sum(branches), adapted=False)
        if settings.workload == "ppo":  # a value model of its own, trained in full
            update += settings.epochs * full.train(prompt, branches, 0)
    return {"rollout": rollout, "update": update}


@dataclass(frozen=True)
class GivenAnswers:
    """Batches of prompts with the answers of the same rows as `text`."""

    prompts: Iterable[Mapping[str, Any]]
    text: Iterable[Any]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Both in the order of the file."""
        for prompts, text in zip(self.prompts, self.text, strict=True):
            yield {**prompts, "text": text}


def batches(settings: Settings) -> Any:
    """Batches of the rows in the order of the file."""
    if not settings.given:
        return _loader(settings)
    return GivenAnswers(_loader(settings), _loader(replace(settings, workload="sft")))


def _loader(settings: Settings) -> Any:
    kind, wanted = KINDS.get(settings.workload, (PromptDataModule, ["prompt"]))
    own: dict[str, Any] = {"format": PromptOnly(columns=[])} if kind is PromptDataModule else {}
    data = kind(
        test=RowsSource([{name: row[name] for name in wanted} for row in settings.rows()]),
        tokenizer=settings.model,
        batch_size=settings.batch,
        invalid="error",
        cache_dir=str(Path(settings.data).parent / "cache"),
        **own,
    )
    data.prepare_data()
    data.setup("predict")
    return data.predict_dataloader()  # the only one that keeps the order


def metric_of(settings: Settings) -> str:
    """The name of the curve that tells whether both sides do the same."""
    if settings.workload == "distill":
        return f"train/loss/{'given_' if settings.given else ''}divergence_avg"
    return "train/loss" if settings.workload in OFFLINE else "train/objective/scores"


def main() -> None:
    settings = Settings.from_command_line()
    start(settings)
    silence()
    offline = settings.workload in OFFLINE
    timer = PhaseTimer()
    watch = Watch(settings, metric_of(settings), timer)
    trainer = quiet_trainer(timer, watch, gradient_clip_val=1.0 if offline else None)
    trainer.fit(build(settings), batches(settings))
    samples = settings.batch * settings.num_samples
    result = {"seconds": watch.clock.seconds, "samples": samples, "curve": watch.curve}
    result |= {"dtype": settings.dtype, "given": settings.given}
    if not settings.cpu:  # phases are timed by the wall
        result |= {"phases": watch.phases[1:], "flops": watch.flops[1:], "peaks": matmul_peaks()}
    if not offline:
        result["tokens"] = [length * samples for length in watch.lengths[1:]]
    report(result)


if __name__ == "__main__":
    main()
