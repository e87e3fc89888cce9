"""One sentence: whether it fits and what takes the most, or the cheapest option that makes it fit."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lit_rlhf.estimate.estimating import Estimate, Plan, Rehearsal, run_plan, weigh
from lit_rlhf.estimate.table import gib
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import PolicyModule
from lit_rlhf.rollout import NativeEngine

_DEVICES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Change:
    """An option that takes less memory, and the plan with it.

    Attributes:
        text: As it is written in a configuration.
        plan: What is estimated then.
        same_step: Whether a process's step is the same.
    """

    text: str
    plan: Plan
    same_step: bool = False


def advise(plan: Plan, found: Estimate, rehearsal: Rehearsal) -> str:
    """Say whether it fits; if not, try options from the cheapest on, each alone, and name the first that helps."""
    peak = found.peak
    largest = max(peak.parts, key=lambda name: peak.parts[name])
    where = (
        f"{gib(found.need)} of {gib(found.capacity)} GiB at the peak of the phase {peak.name!r}, of which {largest} "
        f"{'take' if largest.endswith('s') else 'takes'} {gib(peak.parts[largest])}"
    )
    if found.fits:
        most = found.largest_rows * plan.workload.row
        return f"It fits: {where}. Microbatches may have up to {most:,} tokens ({found.largest_rows} rows)."
    for change in _changes(plan, found):
        after = weigh(change.plan, rehearsal) if change.same_step else run_plan(change.plan)
        text = change.text
        if not after.fits and after.largest_rows:
            smaller = _smaller_microbatch(change.plan, after)
            text, after = f"{text} and {smaller.text}", run_plan(smaller.plan)
        if after.fits:
            return f"It doesn't fit: {where}. Cheapest way out: {text}; that takes {gib(after.need)} GiB."
    return (
        f"It doesn't fit: {where}. No option that was tried makes it fit by itself: choose a smaller model, shorter "
        "texts or larger cards."
    )


def _changes(plan: Plan, found: Estimate) -> Iterator[Change]:
    """Options, those that cost least time or quality first."""
    if found.largest_rows:
        yield _smaller_microbatch(plan, found)
    if found.peak.name == "rollout" and isinstance(plan.module, PolicyModule):
        rows = plan.workload.prompts * plan.workload.branches
        native = isinstance(plan.module.engine, NativeEngine)
        for size in (rows // part for part in (2, 4, 8) if native and rows >= part):
            module = copy.deepcopy(plan.module)
            module.engine = NativeEngine(max_batch_size=size)
            text = f"model.engine: NativeEngine with max_batch_size: {size}"
            yield Change(text, replace(plan, module=module))
    yield from _of_the_model(plan, plan.change(plan.module.spec))


def _of_the_model(plan: Plan, spec: ModelSpec) -> Iterator[Change]:
    adapted, whole = spec.lora is not None or spec.adapter is not None, spec.quantization == "none"
    fresh = "" if adapted else " with lora: {rank: 16, alpha: 32}"
    lora = {} if adapted else {"lora": LoraSpec(rank=16, alpha=32)}
    if not spec.gradient_checkpointing:
        yield _of_spec(plan, "gradient_checkpointing: true", gradient_checkpointing=True)
    if adapted and whole and spec.dtype == "float32":
        yield _of_spec(plan, "dtype: bfloat16", dtype="bfloat16")
    for count in (each for each in _DEVICES if whole and each > plan.processes.count):
        processes = replace(plan.processes, count=count, strategy="fsdp2")
        text = f"trainer.strategy: fsdp2 over {count} devices"
        yield Change(text, replace(plan, processes=processes), same_step=True)
    if not adapted:
        yield _of_spec(plan, f"dtype: bfloat16{fresh}", dtype="bfloat16", **lora)
    if whole:
        packed = {"quantization": "nf4", "dtype": "bfloat16", **lora}
        yield _of_spec(plan, f"quantization: nf4{fresh}", **packed)


def _smaller_microbatch(plan: Plan, found: Estimate) -> Change:
    rows = found.largest_rows
    if isinstance(plan.module, PolicyModule):
        text = f"model.updates.microbatch_tokens: {rows * plan.workload.row}"
    else:
        step = plan.workload.prompts * plan.accumulate  # rows of an optimizer step, which stay
        rows = max(part for part in range(1, rows + 1) if step % part == 0)
        text = f"data.batch_size: {rows} with trainer.accumulate_grad_batches: {step // rows}"
    return Change(text, replace(plan, rows=rows))


def _of_spec(plan: Plan, text: str, **options: Any) -> Change:
    def change(spec: ModelSpec) -> ModelSpec:
        return replace(plan.change(spec), **options)

    return Change(f"model.backbone.{text}", replace(plan, change=change))
