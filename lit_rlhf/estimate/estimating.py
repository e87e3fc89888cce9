"""Will it fit, and how long will it take: a module's dry run, beside what a card has and does."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from lit_rlhf.estimate.building import Built, quantized_layers
from lit_rlhf.estimate.cards import Card
from lit_rlhf.estimate.collecting import collect
from lit_rlhf.estimate.dry_run import DryRun, Phase
from lit_rlhf.estimate.processes import Processes, syncing_seconds, whole_bytes
from lit_rlhf.estimate.workload import Workload
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.models.loading import dtype_of, embeddings
from lit_rlhf.modules import PolicyModule
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.modules.minibatches import START, fitting_tokens

PEAK_SHARE, BANDWIDTH_SHARE = 0.4, 0.6
"""What steps are taken to reach of a card's peaks: of 0.3 to 0.57 and 0.2 to 0.6 that were measured on CPUs."""
_KEPT = ("weights", "gradients", "optimizer", "reserved")
"""Parts that an update finds there, by how their names begin."""


@dataclass(frozen=True)
class Plan:
    """What is estimated.

    Attributes:
        module: As its constructor made it.
        workload: What a step of a process is given.
        card: What a process runs on.
        autocast: Of the Trainer's precision, if any.
        accumulate: `trainer.accumulate_grad_batches`.
        processes: Of the run.
        change: Of the policy's spec.
        rows: Of a microbatch; None as configured.
    """

    module: RLHFModule
    workload: Workload
    card: Card
    autocast: torch.dtype | None = None
    accumulate: int = 1
    processes: Processes = field(default_factory=Processes)
    change: Callable[[ModelSpec], ModelSpec] = lambda spec: spec
    rows: int | None = None


@dataclass(frozen=True)
class PhaseEstimate:
    """A phase of a step on one process.

    Attributes:
        name: As `PhaseTimer` logs it.
        parts: Bytes held at its peak, by what for.
        at_least: Seconds at the card's peaks.
        likely: Seconds at the share of them that steps reach.
    """

    name: str
    parts: dict[str, float]
    at_least: float
    likely: float

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Estimate:
    """What a step of a process takes.

    Attributes:
        card: Its name.
        capacity: Bytes that it has.
        processes: Of the run.
        workload: What a step is given.
        rows: Of a microbatch.
        phases: In their order; seconds of an iteration, or of an optimizer step.
        largest_rows: Of the largest microbatch that fits; 0 if none does.
        notes: What was assumed.
        advice: Whether it fits, or what would make it, in a sentence; empty where it wasn't asked for.
    """

    card: str
    capacity: float
    processes: int
    workload: Workload
    rows: int
    phases: tuple[PhaseEstimate, ...]
    largest_rows: int
    notes: tuple[str, ...]
    advice: str = ""

    @property
    def peak(self) -> PhaseEstimate:
        """The phase that holds the most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def need(self) -> float:
        """Bytes."""
        return self.peak.total

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.need <= self.capacity

    @property
    def seconds(self) -> float:
        """Likely seconds of all phases."""
        return sum(phase.likely for phase in self.phases)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: bytes and seconds."""
        return {
            "card": self.card,
            "capacity": self.capacity,
            "need": self.need,
            "fits": self.fits,
            "processes": self.processes,
            "workload": asdict(self.workload),
            "microbatch_rows": self.rows,
            "largest_microbatch_rows": self.largest_rows,
            "largest_microbatch_tokens": self.largest_rows * self.workload.row,
            "seconds": self.seconds,
            "phases": [asdict(phase) | {"total": phase.total} for phase in self.phases],
            "notes": list(self.notes),
            "advice": self.advice,
        }


@dataclass(frozen=True)
class Rehearsal:
    """A step that was run without numbers; what other processes or sizes of card change is worked out from it.

    Attributes:
        built: The module.
        run: Its run.
        phases: What each has taken.
        other: The update with `other_rows` in a microbatch.
        other_rows: Twice or half as many.
    """

    built: Built
    run: DryRun
    phases: tuple[Phase, ...]
    other: Phase
    other_rows: int


def run_plan(plan: Plan) -> Estimate:
    """Rehearse a step and weigh it.

    Raises:
        ConfigurationError: The module's model is loaded already, is of a kind that isn't known, or can't be built.
    """
    return weigh(plan, rehearse(plan))


def rehearse(plan: Plan) -> Rehearsal:
    """Run a module's step without numbers."""
    built = Built(plan.module, plan.card.kind, plan.change)
    run = DryRun(
        built.module,
        plan.workload,
        built.weights(),
        kind=plan.card.kind,
        autocast=plan.autocast,
        accumulate=plan.accumulate,
        rows=plan.rows,
    )
    phases = _phases(run)
    if isinstance(built.module, PolicyModule) and plan.rows is None:
        size = built.module.microbatch_size
        # What a run would choose by the same rule: on a GPU, where a step has several microbatches.
        if size.option == "auto" and plan.card.kind == "cuda" and run.parts > 1:
            update = _phase(plan, built, run, phases[-1])
            kept = sum(held for name, held in update.parts.items() if name.startswith(_KEPT))
            per_token = (update.total - kept) / (run.rows * plan.workload.row)
            # It begins with START, and so takes its memory even where it then takes less.
            size.chosen = max(START, fitting_tokens(plan.card.memory - kept, per_token))
            phases = phases if size.chosen == START else _phases(run)
    phases = (*phases, run.optimize())
    rows = 2 * run.rows if run.rows == 1 else run.rows // 2
    return Rehearsal(built, run, phases, run.update(rows), rows)


def _phases(run: DryRun) -> tuple[Phase, ...]:
    """Those with microbatches; the update is the last."""
    module = run.module
    collected = [*collect(run, module)] if isinstance(module, PolicyModule) else []
    return (*collected, run.update())


def weigh(plan: Plan, rehearsal: Rehearsal) -> Estimate:
    """Weigh what a step has taken against a plan's card and processes."""
    built, run = rehearsal.built, rehearsal.run
    phases = tuple(_phase(plan, built, run, phase) for phase in rehearsal.phases)
    microbatches = run.steps * run.parts
    syncing = syncing_seconds(run.module, plan.processes, run.steps, microbatches, run.scorings)
    exchange = [PhaseEstimate("exchange", {}, 0.0, syncing)] if syncing else []
    return Estimate(
        card=plan.card.name,
        capacity=plan.card.memory,
        processes=plan.processes.count,
        workload=plan.workload,
        rows=run.rows,
        phases=(*phases, *exchange),
        largest_rows=_largest(plan, rehearsal, phases),
        notes=(*built.notes, *_notes(built.module, plan.card)),
    )


def _phase(plan: Plan, built: Built, run: DryRun, phase: Phase) -> PhaseEstimate:
    card = plan.card
    casts = plan.autocast not in (None, dtype_of(built.module.backbone.spec))
    held = plan.processes.hold(phase.peak, whole_bytes(built.module, phase, casts=casts))
    if whole := _whole_layers(built.module.backbone):  # for its product
        held["a layer unpacked"] = max(whole)
    arrays = sum(size for name, size in held.items() if not name.startswith("weights"))
    held["allocator"] = card.slack * arrays
    held["reserved"] = card.reserved
    at_least, likely = _seconds(plan, run, phase)
    return PhaseEstimate(phase.name, {k: v for k, v in held.items() if v}, at_least, likely)


def _whole_layers(backbone: Backbone) -> list[float]:
    """Bytes of each packed layer when it is made whole."""
    if backbone.spec.quantization not in ("nf4", "fp4"):
        return []
    width = dtype_of(backbone.spec).itemsize
    return [float(layer.weight.numel() * width) for layer in quantized_layers(backbone)]


def _seconds(plan: Plan, run: DryRun, phase: Phase) -> tuple[float, float]:
    """At the card's peaks, and at the share of them that is likely; of all passes of an iteration."""
    card, backbone = plan.card, run.module.backbone
    peak = card.peak(plan.autocast or dtype_of(backbone.spec))
    flops = phase.flops * (run.repeats if phase.name == "update" else 1)
    if phase.name == "optimizer":
        moved = 3.0 * phase.peak.get("optimizer", 0) + 3.0 * phase.peak["gradients"]
        seconds = run.steps * moved / card.bandwidth
        return seconds, seconds / BANDWIDTH_SHARE
    computing = flops / peak
    launching = phase.kernels * (card.replay if phase.recorded else card.launch)
    if phase.name != "rollout":
        launching *= run.steps * run.parts if phase.name == "update" else 1
        return computing, max(computing / PEAK_SHARE, launching)
    launching *= phase.passes
    weights = _read(run)
    if phase.packed and plan.autocast is not None:  # cast once, when they are copied
        weights *= plan.autocast.itemsize / dtype_of(backbone.spec).itemsize
    read = phase.passes * (weights + phase.cache / 2) / card.bandwidth
    return max(computing, read), max(computing / PEAK_SHARE, read / BANDWIDTH_SHARE, launching)


def _read(run: DryRun) -> float:
    """Bytes of the weights that a token is multiplied with; packed ones are written and read whole too."""
    parts, backbone = run.count.now(), run.module.backbone
    engine = getattr(run.module, "engine", None)
    unpacked = 0.0 if getattr(engine, "dequantize", False) else 2 * sum(_whole_layers(backbone))
    base = parts.get("weights: policy", 0) + parts.get("weights: shared base", 0)
    embedded = embeddings(backbone.model)
    head = backbone.model.get_output_embeddings()
    tied = head is not None and embedded is head.weight
    return unpacked + base - (0 if tied else embedded.numel() * embedded.itemsize)


def _largest(plan: Plan, rehearsal: Rehearsal, phases: tuple[PhaseEstimate, ...]) -> int:
    """Rows of the largest microbatch: what one takes grows in proportion to them."""
    rows = rehearsal.run.rows
    here = next(phase for phase in phases if phase.name == "update").total
    there = _phase(plan, rehearsal.built, rehearsal.run, rehearsal.other).total
    if max(phase.total for phase in phases if phase.name != "update") > plan.card.memory:
        return 0
    each = (here - there) / (rows - rehearsal.other_rows)
    return max(math.floor((plan.card.memory - here) / each) + rows, 0)


def _notes(module: RLHFModule, card: Card) -> list[str]:
    notes = []
    if isinstance(module, PolicyModule) and module.microbatch_size.option == "auto":
        tokens = module.microbatch_size.tokens
        notes.append(f"updates.microbatch_tokens: auto is taken for {tokens:,} padded tokens.")
    if card.kind == "cpu":
        notes.append(
            "On Linux glibc keeps freed memory in holes, up to twice what arrays take: with "
            "MALLOC_MMAP_THRESHOLD_=1048576 in the environment it gives it back."
        )
    if isinstance(module, PolicyModule) and module.engine.own_arithmetic is False:
        notes.append(
            f"{type(module.engine).__name__} holds memory of its own, which isn't counted, and its time neither."
        )
    return notes
