"""`lit-rlhf sft | reward | dpo | kto | ppo | grpo`: a shipped configuration and what differs from it, in one line."""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from lit_rlhf.cli.commands import TRAINING
from lit_rlhf.cli.shipped import RECIPES, SCORED
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.files import is_saved_by_datasets

_CLASS = re.compile(r"[A-Z]\w*|\w+(\.\w+)*\.[A-Z]\w*")
"""A class as a configuration names it, of the library or `mine.Reward`; models have other names, or a slash."""

_FILE = re.compile(r"\.[A-Za-z]+(\.\w+)?$|\*")
"""How files end, and patterns of them; names on the hub hold versions behind a dot, as in llama-3.1-mixture."""


def run(words: Sequence[str]) -> None:
    """Run the `fit` that a line stands for."""
    from lightning.pytorch.utilities import rank_zero_only  # noqa: PLC0415  (start-up that a refusal shall not pay)

    fit = expand(words)
    text = f"lit-rlhf {words[0]} stands for:\n  {shlex.join(['lit-rlhf', *fit])}"
    rank_zero_only(print)(text, file=sys.stderr, flush=True)
    import_module(TRAINING).run(fit, words[0])


def expand(words: Sequence[str]) -> list[str]:
    """The `fit` that a line stands for.

    Args:
        words: The command's name and its options.

    Raises:
        ConfigurationError: An option lacks its value.

    Example:
        >>> " ".join(
        ...     expand(["dpo", "--model", "m", "--data", "d.jsonl", "--trainer.max_epochs", "2"])
        ... )
        'fit -c preference/dpo_lora --model.backbone.name m --data.tokenizer m --data.train.path d.jsonl
        --trainer.max_epochs 2'
    """
    command = words[0]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("--model", "--data", *(["--reward"] if command in SCORED else [])):
        parser.add_argument(name)
    try:
        given, rest = parser.parse_known_args(words[1:])
    except argparse.ArgumentError as error:
        raise ConfigurationError(f"{error}. See lit-rlhf {command} --help.") from error
    fit = ["fit", "-c", RECIPES[command]]
    if given.model is not None:
        fit += ["--model.backbone.name", given.model, "--data.tokenizer", given.model]
    if given.data is not None:
        fit += _source(given.data)
    if getattr(given, "reward", None) is not None:
        is_path = Path(given.reward).exists() or not _CLASS.fullmatch(given.reward)
        fit += ["--model.reward.path" if is_path else "--model.reward", given.reward]
    return [*fit, *rest]


def _source(data: str) -> list[str]:
    """Options for what is there, a file, a directory of shards or of `save_to_disk`; else the name on the hub."""
    path = Path(data).expanduser()
    if is_saved_by_datasets(path):
        return ["--data.train", "DirectorySource", "--data.train.path", data]
    if path.exists() or "://" in data or _FILE.search(data):
        return ["--data.train.path", data]
    return ["--data.train", "HubSource", "--data.train.name", data]
