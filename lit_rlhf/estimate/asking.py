"""The estimate of a module and its data, in one call."""

from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.estimate.advice import advise
from lit_rlhf.estimate.cards import Card, bandwidth_of, card_of
from lit_rlhf.estimate.estimating import Estimate, Plan, rehearse, weigh
from lit_rlhf.estimate.processes import Processes, Strategy
from lit_rlhf.estimate.workload import Workload
from lit_rlhf.models.loading import dtype_of
from lit_rlhf.modules import DAPOPolicyModule, PolicyModule, SupervisedModule
from lit_rlhf.modules.base import RLHFModule

_RANKED = 4
"""Completions of a prompt where the data may have any number from two up."""
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def estimate(
    module: RLHFModule,
    data: LightningDataModule | None = None,
    *,
    card: str | Card = "this",
    precision: str = "32-true",
    devices: int = 1,
    strategy: Strategy = "ddp",
    link: str | None = None,
    accumulate: int = 1,
    batch_size: int | None = None,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
    branches: int | None = None,
    advice: bool = True,
) -> Estimate:
    """Say what memory and time a step takes, from shapes: no weights are read, nothing is computed.

    The module's own code runs on tensors without numbers while every array is counted, so options count as they do in
    `fit`. Rows are taken to be as long as they may be.

    Args:
        module: As its constructor made it; it stays as it is.
        data: Its DataModule, of which limits and batch size are taken.
        card: A name in `CARDS`, "this" for this machine, or one of your own.
        precision: The Trainer's.
        devices: Processes of the run, on all machines.
        strategy: How they divide the model.
        link: A name in `LINKS`, or GB/s in one direction, of the slowest link between processes; default: the card's.
        accumulate: `trainer.accumulate_grad_batches`.
        batch_size: Rows of a batch, where there are no data to say so.
        prompt_tokens: Of each prompt; default: the limit of the data.
        completion_tokens: Of each completion; default: `sampling.max_new_tokens`, or the limit of the data.
        branches: Completions of a prompt; default: as the module or the kind of data has it.
        advice: Whether to look for an option that makes it fit, where it doesn't: a few estimates more.

    Raises:
        ConfigurationError: A length isn't known, an option is out of range, or the model can't be built.
    """
    for name, value in (("devices", devices), ("accumulate", accumulate)):
        if value < 1:
            raise ConfigurationError(f"{name}={value}: an estimate is of at least 1.")
    autocast = _AUTOCAST.get(precision)
    found = card if isinstance(card, Card) else card_of(card, autocast or dtype_of(module.spec))
    plan = Plan(
        module,
        _workload(module, data, batch_size, prompt_tokens, completion_tokens, branches),
        found,
        autocast=autocast,
        accumulate=accumulate,
        processes=Processes(devices, strategy, bandwidth_of(link or found.link)),
    )
    rehearsal = rehearse(plan)
    result = weigh(plan, rehearsal)
    return replace(result, advice=advise(plan, result, rehearsal)) if advice else result


def _workload(
    module: RLHFModule,
    data: Any,
    batch_size: int | None,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    branches: int | None,
) -> Workload:
    prompts = batch_size or getattr(data, "batch_size", None)
    if isinstance(module, DAPOPolicyModule) and prompts is not None:
        prompts = max(prompts // module.oversampling, 1)
    longest, most = "data.max_completion_length", getattr(data, "max_completion_length", None)
    if isinstance(module, PolicyModule):
        longest, most = "sampling.max_new_tokens", module.sampling.max_new_tokens
    prompt = prompt_tokens or getattr(data, "max_prompt_length", None)
    return Workload(
        _known(prompts, "batch_size", "data.batch_size"),
        _known(prompt, "prompt_tokens", "data.max_prompt_length"),
        _known(completion_tokens or most, "completion_tokens", longest),
        branches or _branches(module, data),
    )


def _known(value: int | None, name: str, option: str) -> int:
    if value is None:
        raise ConfigurationError(
            f"How much memory a step takes depends on {name}, and {option} isn't set: give {name}."
        )
    return int(value)


def _branches(module: RLHFModule, data: Any) -> int:
    """Completions of a prompt: as the module samples them, its loss takes them, or the kind of data has them."""
    if isinstance(module, PolicyModule):
        # With an opponent each sample has another beside it.
        return module.num_samples * (2 if getattr(module, "opponent", None) else 1)
    wanted: int | None = getattr(getattr(module, "objective", None), "num_branches", None)
    if wanted is not None:
        return wanted
    if data is not None:
        least, most = data.shape.completions
        return _RANKED if most is None else max(least, 1)
    return 1 if isinstance(module, SupervisedModule) else 2
