"""`lit-rlhf estimate`: what `fit` would take with the same words, in memory and time."""

import argparse
import json
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Trainer
from rich.console import Console

from lit_rlhf.cli.output import print_text
from lit_rlhf.cli.training import TrainingCLI, start
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.estimate import CARDS, LINKS, estimate, table
from lit_rlhf.modules.base import RLHFModule

_DESCRIPTION = """\
Say whether a configuration fits a card, and about how long a step takes: memory by part and phase, time by phase, and
the cheapest option that would make it fit. Weights are not read, data neither: rows are as long as the limits allow.
Files and options are those of `lit-rlhf fit`."""


class _Unstarted(TrainingCLI):
    """Parses as `fit` does, and makes module and data, and a trainer that any machine has."""

    runs = False

    def instantiate_trainer(self, **_: Any) -> Trainer:
        """One that asks for no device: the written one may be of another machine."""
        return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)


def run(words: Sequence[str]) -> None:
    """Parse a command line and run it."""
    parser = argparse.ArgumentParser(
        prog="lit-rlhf estimate",
        usage="lit-rlhf estimate -c FILE [options of lit-rlhf fit] [--card CARD] [--devices N] ...",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    cards, links = ", ".join(CARDS), ", ".join(LINKS)
    parser.add_argument("--card", default="this", help=f"{cards}; default: this machine")
    parser.add_argument("--devices", type=int, help="processes of the run; default: the trainer's")
    parser.add_argument("--link", help=f"slowest between processes: {links}, or GB/s")
    parser.add_argument("--prompt_tokens", type=int, help="default: data.max_prompt_length")
    parser.add_argument("--completion_tokens", type=int, help="default: the limit of completions")
    parser.add_argument("--branches", type=int, help="completions of a prompt, where data say not")
    parser.add_argument("--json", action="store_true", help="bytes and seconds for programs")
    try:
        given, rest = parser.parse_known_args(words[1:])
    except argparse.ArgumentError as error:
        raise ConfigurationError(f"{error}. See lit-rlhf estimate --help.") from error
    if not rest:
        raise ConfigurationError(
            "Of which configuration? Give one as to lit-rlhf fit, such as -c policy/ppo_lora."
        )
    made = start(_Unstarted, ["fit", *rest], "estimate")
    if not isinstance(made.model, RLHFModule):
        raise ConfigurationError(
            f"{type(made.model).__name__} is none of this library's modules, whose code is what an estimate runs."
        )
    trainer = made.config["fit"].trainer
    devices, strategy = _division(trainer)
    found = estimate(
        made.model,
        made.datamodule,
        card=given.card,
        precision=str(trainer.precision or "32-true"),
        devices=devices if given.devices is None else given.devices,
        strategy=strategy,
        link=given.link,
        accumulate=trainer.accumulate_grad_batches,
        prompt_tokens=given.prompt_tokens,
        completion_tokens=given.completion_tokens,
        branches=given.branches,
    )
    if given.json:
        print_text(json.dumps(found.to_dict(), indent=2) + "\n")
        return
    console = Console()
    console.print(table(found))
    console.print(found.advice, style="bold")


def _division(trainer: Any) -> tuple[int, Literal["ddp", "fsdp2"]]:
    """Processes of the run, of `auto` one, for only the machine itself knows; and how weights are divided over them."""
    devices = trainer.devices
    count = len(devices) if isinstance(devices, list) else 1
    if str(devices).isdigit():
        count = int(str(devices))
    strategy = trainer.strategy
    name = str(getattr(strategy, "class_path", strategy))
    if name.rsplit(".", 1)[-1] in ("FSDPStrategy", "fsdp") or "deepspeed" in name.lower():
        raise ConfigurationError(
            f"trainer.strategy={name!r} isn't estimated: it divides by rules of its own. Estimate fsdp2 instead."
        )
    divides = name == "fsdp2" or name.endswith(("FSDP2Strategy", "ModelParallelStrategy"))
    return max(count, 1) * int(trainer.num_nodes), "fsdp2" if divides else "ddp"
