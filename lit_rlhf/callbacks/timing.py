"""Where the time goes: seconds by phase, tokens per second, and the share of the hardware's arithmetic that is used."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch.utils.hooks import RemovableHandle

from lit_rlhf.callbacks.profile import (
    OperatorProfile,
    PhaseRow,
    phase_rows,
    phase_table,
    write_profile,
)
from lit_rlhf.models import Backbone
from lit_rlhf.models.flops import call_flops, measure_peak_flops
from lit_rlhf.models.loading import DTYPES
from lit_rlhf.modules.phases import Phases, now
from lit_rlhf.options import check_option, is_number
from lit_rlhf.types import BranchOutput

_AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}
_OUTSIDE = "outside iterations"
_OTHER = "other"
_UPDATE = "update"
_PROFILED = 1
"""The iteration whose operators are recorded; the first one warms caches up."""


class PhaseTimer(Callback):
    r"""Logs how long each phase of an iteration took, and how much got done in it.

    For policies: `train/time/<phase>` in seconds (rollout, reward, reference, update, other; their sum is
    `train/time/iteration`), `train/throughput/generated_tokens_per_second` over the rollout and
    `train/throughput/trained_tokens_per_second` over the update. Other modules have one phase, the update. Tokens are
    those of all processes. On CUDA `train/memory/peak_gib` is the most memory that tensors took during the iteration,
    on the first process's device.

    With a peak, `train/throughput/mfu` is the model-FLOPs utilisation of the update, and
    `train/throughput/<phase>_mfu` that of each other phase: its FLOPs by arithmetic over its seconds and the peak. A
    forward of t tokens takes $2 (N + N_a) t + 4 l d p + 2 V h q$ (N weights of linear layers and $N_a$ of the adapter;
    p pairs of attention in l layers of width d; q positions through the head of V tokens and h hidden units). A
    backward takes the same, $4 l d p$ more for attention, and $2 N_t t$ for the $N_t$ weights that are trained: about
    4N with the forward on a frozen base, 6N in full fine-tuning (arXiv:2204.02311, appendix B; `lit_rlhf.models.flops`
    has the rest). Of the update everything that runs through a `Backbone` counts: policy, value model, and for
    preference losses the reference. Of the rollout it is the policy's sampling, wherever it ran; rewards count where a
    `Backbone` scores. These are FLOPs, seconds and peak of one process, the first.

    Args:
        peak_flops: FLOP/s of one device at the precision of training, from its data sheet (without sparsity); `measure`
            takes what a large matrix product reaches on it, in the dtype of the model's base; None logs no utilisation.
        summary: Print a table of all phases when training ends.
        profile: Print that table, and write it with the operators that took the most time to `profile.md`, and its
            numbers to `profile.json`, in the trainer's `default_root_dir`. Operators are those of the second iteration,
            which recording slows down and which the table therefore leaves out; a run of one iteration has none.
            Measures the peak if none is given. `lit-rlhf fit --profile` sets it.

    Raises:
        ConfigurationError: The peak is not positive.
    """

    def __init__(
        self,
        peak_flops: float | Literal["measure"] | None = None,
        summary: bool = False,
        profile: bool = False,
    ) -> None:
        valid = peak_flops in (None, "measure") or (is_number(peak_flops) and float(peak_flops) > 0)
        allowed = "above 0: FLOP/s of one device, such as 312e12"
        check_option(valid, self, "peak_flops", peak_flops, allowed)
        self.peak_flops = peak_flops
        self.summary = summary
        self.profile = profile
        self.totals: dict[str, float] = {}
        self.tokens: dict[str, int] = {}
        self.flops: dict[str, float] = {}
        self._peak: float | None = None
        self._phases = Phases()
        self._has_phases = False
        self._hooks: list[RemovableHandle] = []
        self._operators = OperatorProfile()
        self._recording = False
        self._iterations = 0
        self._began = self._ended = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the module's backbones, and measure the peak where asked."""
        self.totals, self.tokens, self.flops, self._iterations = {}, {}, {}, 0
        phases = getattr(pl_module, "phases", None)
        self._has_phases = isinstance(phases, Phases)
        self._phases = phases if isinstance(phases, Phases) else Phases()
        backbones = [module for module in pl_module.modules() if isinstance(module, Backbone)]
        if self.peak_flops == "measure" or (self.profile and self.peak_flops is None):
            # Products are computed in autocast's dtype, else in that of the model's base.
            autocast = _AUTOCAST.get(str(trainer.precision).partition("-")[0])
            base = DTYPES[backbones[0].spec.dtype] if backbones else torch.float32
            self._peak = measure_peak_flops(pl_module.device, autocast or base)
        else:
            self._peak = self.peak_flops
        if self._peak is not None:
            self._hooks = [
                module.register_forward_hook(self._count, with_kwargs=True) for module in backbones
            ]
        self._ended = now()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """An iteration begins."""
        if not self._has_phases:
            self._phases.reset()
        self._recording = self.profile and self._iterations == _PROFILED and trainer.is_global_zero
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._began = now()
        self._add(self.totals, {_OUTSIDE: self._began - self._ended})
        if self._recording:
            self._operators.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the iteration's seconds and throughput."""
        iteration = now() - self._began
        phases = self._phases
        if self._has_phases:
            seconds, tokens = dict(phases.seconds), dict(phases.tokens)
            seconds[_OTHER] = iteration - sum(seconds.values())
        else:
            branches = batch.get("branch_ids") if isinstance(batch, dict) else None
            count = 0 if branches is None else int((branches >= 0).sum())
            seconds, tokens = {_UPDATE: iteration}, {_UPDATE: count * trainer.world_size}
        flops = {name: float(value) for name, value in phases.flops.items()}
        if self._recording:
            self._operators.stop()
            self._recording = False
        else:
            self._add(self.totals, seconds)
            self._add(self.tokens, tokens)
            self._add(self.flops, flops)
        self._iterations += 1
        logged = {f"time/{name}": value for name, value in seconds.items()}
        logged |= {"time/iteration": iteration, **self._throughput(seconds, tokens, flops)}
        if pl_module.device.type == "cuda":
            peak = max(torch.cuda.max_memory_allocated(pl_module.device), phases.peak)
            logged["memory/peak_gib"] = peak / 2**30
        pl_module.log_dict({f"train/{name}": value for name, value in logged.items()}, batch_size=1)
        self._ended = now()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table and write the profile, if asked."""
        self._unhook()
        if not trainer.is_global_zero or not (self.summary or self.profile):
            return
        Console().print(phase_table(self.rows()))
        if self.profile:
            directory, operators = Path(trainer.default_root_dir), self._operators.table()
            path = write_profile(directory, self.rows(), self._peak, operators)
            Console().print(f"The profile is in {path}")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was, and record no longer."""
        self._unhook()
        if self._recording:
            self._operators.stop()

    def rows(self) -> list[PhaseRow]:
        """What each phase took over the whole run, the longest first."""
        return phase_rows(self.totals, self.tokens, self.flops, self._peak)

    def _count(
        self,
        backbone: Backbone,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: BranchOutput,
    ) -> None:
        """Add a pass's FLOPs to those of the phase that is on; passes between the phases of an iteration are checks."""
        phase = self._phases.current if self._has_phases else _UPDATE
        if phase is None:
            return
        self._phases.flops[phase] += call_flops(backbone, args, kwargs, output)

    def _unhook(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    @staticmethod
    def _add(totals: dict[str, Any], values: dict[str, Any]) -> None:
        for name, value in values.items():
            totals[name] = totals.get(name, 0) + value

    def _throughput(
        self, seconds: dict[str, float], tokens: dict[str, int], flops: dict[str, float]
    ) -> dict[str, float]:
        rates = {}
        for phase, name in (("rollout", "generated"), (_UPDATE, "trained")):
            if tokens.get(phase) and seconds.get(phase):
                rates[f"throughput/{name}_tokens_per_second"] = tokens[phase] / seconds[phase]
        for phase, value in flops.items():
            if self._peak is not None and seconds.get(phase):
                name = "mfu" if phase == _UPDATE else f"{phase}_mfu"
                rates[f"throughput/{name}"] = value / (seconds[phase] * self._peak)
        return rates
