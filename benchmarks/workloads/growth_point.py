"""One point of benchmarks/scaling.py: an iteration with exact lengths on random weights, by phase."""

import json
import re
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from benchmarks.peers.processes import report
from benchmarks.quiet import quiet_trainer
from benchmarks.workloads.arithmetic import Decoder
from benchmarks.workloads.peak import matmul_peaks
from lit_rlhf.callbacks import PhaseTimer
from lit_rlhf.internals.lightning import silence_noise
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import GroupPolicyModule
from lit_rlhf.objectives import FixedKL, RewardToGo, UnbiasedK3
from lit_rlhf.rewards import FunctionReward
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import PromptBatch

RANK = 16
PHASES = ("rollout", "reference", "update")
_SHAPE = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters",
    "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """What a process runs.

    Attributes:
        model: Directory whose config and tokenizer are taken; the weights are random.
        overrides: Of the config, for other sizes.
        prompts: Prompts of an iteration.
        prompt: Tokens of each.
        samples: Completions of each.
        completion: Tokens of each completion: none ends early.
        steps: Iterations; the first isn't timed.
        threads: Cores.
    """

    model: str
    overrides: dict[str, int]
    prompts: int
    prompt: int
    samples: int
    completion: int
    steps: int = 3
    threads: int = 2

    def config(self) -> dict[str, Any]:
        """Of the model."""
        told: dict[str, Any] = json.loads(
            (Path(self.model) / "config.json").read_text(encoding="utf-8")
        )
        return {name: told[name] for name in _SHAPE} | self.overrides

    def decoder(self) -> Decoder:
        """Its shape."""
        return Decoder.from_config(self.config(), RANK)

    def flops(self) -> dict[str, float]:
        """Of an iteration, by phase."""
        decoder, branches = self.decoder(), [float(self.completion)] * self.samples
        scored = self.samples * self.completion
        found = {
            "rollout": decoder.generate(self.prompt, branches),
            "reference": decoder.forward(self.prompt, branches, scored, adapted=False),
            "update": decoder.train(self.prompt, branches, scored),
        }
        return {phase: self.prompts * count for phase, count in found.items()}


class Watch(Callback):
    """Seconds and highest resident memory of each phase, iteration by iteration."""

    def __init__(self, timer: PhaseTimer) -> None:
        self.timer = timer
        self.seconds: list[dict[str, float]] = []
        self.peaks: list[dict[str, int]] = []
        self._before: dict[str, float] = {}
        self._phase = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No token ends a completion; hear of phases."""
        pl_module.backbone.eos_token_ids = ()
        pl_module.phases.listeners.append(self._enter)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """An iteration begins."""
        self.peaks.append({})

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """An iteration has ended."""
        self._enter("", 0, 0)
        totals = dict(self.timer.totals)
        self.seconds.append({name: totals[name] - self._before.get(name, 0.0) for name in PHASES})
        self._before = totals

    def _enter(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase:
            self.peaks[-1][self._phase] = max(self.peaks[-1].get(self._phase, 0), resident_peak())
            self._phase = phase
            forget_resident_peak()


def resident_peak() -> int:
    """Bytes: the most memory that this process held since `forget_resident_peak`."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024


def forget_resident_peak() -> None:
    """Let the kernel's mark begin anew at what is held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def build(point: Point) -> GroupPolicyModule:
    """GRPO but for the group's normalisation, which one sample has none of: the same arithmetic."""
    lora = LoraSpec(rank=RANK, alpha=2.0 * RANK)
    return GroupPolicyModule(
        ModelSpec(config=point.config(), tokenizer=point.model, dtype="bfloat16", lora=lora),
        FunctionReward(lambda responses: [float(len(text)) for text in responses]),
        advantage=RewardToGo(),
        kl_loss=UnbiasedK3(),
        kl=FixedKL(0.04),
        num_samples=point.samples,
        sampling=Sampling(max_new_tokens=point.completion),
        optimizer=partial(torch.optim.AdamW, lr=1e-6),
    )


def batch(point: Point, step: int) -> PromptBatch:
    """Prompts of random tokens."""
    random = torch.Generator().manual_seed(step)
    shape = (point.prompts, point.prompt)
    return PromptBatch(
        input_ids=torch.randint(100, point.config()["vocab_size"], shape, generator=random),
        branch_ids=torch.zeros(shape, dtype=torch.int64),
        position_ids=torch.arange(point.prompt).expand(shape),
        index=torch.arange(point.prompts) + step * point.prompts,
        columns={},
    )


def main() -> None:
    point = Point(**json.loads(sys.argv[1]))
    torch.set_num_threads(point.threads)
    timer = PhaseTimer()
    watch = Watch(timer)
    silence_noise()
    trainer = quiet_trainer(timer, watch)
    batches = [batch(point, step) for step in range(point.steps)]
    trainer.fit(build(point), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    timed = watch.seconds[1:]
    report(
        {
            "point": asdict(point),
            "seconds": {phase: sum(step[phase] for step in timed) / len(timed) for phase in PHASES},
            "peak_bytes": {phase: max(step[phase] for step in watch.peaks) for phase in PHASES},
            "flops": point.flops(),
            "parameters": point.decoder().linear + point.decoder().head,
            "peaks": matmul_peaks(),
        }
    )


if __name__ == "__main__":
    main()
