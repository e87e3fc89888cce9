"""What a configuration stands for, without running it: its parts in Python, and the schema of all configurations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lit_rlhf.cli.training import TrainingCLI, start
from lit_rlhf.internals.jsonargparse import json_schema
from lit_rlhf.internals.lightning import parser_of


class Parts(NamedTuple):
    """What `lit-rlhf fit` would run: `trainer.fit(module, data)`."""

    trainer: Trainer
    module: LightningModule
    data: LightningDataModule


class _Prepared(TrainingCLI):
    runs = False


class _Parsed(TrainingCLI):
    runs = False

    def instantiate_classes(self) -> None:
        """Nothing is built."""


class _Schema(TrainingCLI):
    """Stops when its parsers are there."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        raise _Done(json_schema(parser_of(self, "fit")))


class _Done(Exception):  # noqa: N818 - no error
    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema


def from_config(config: str | Path, *overrides: str | Path) -> Parts:
    """Trainer, module and data of a configuration, for a script or a notebook: nothing is trained yet.

    Files, options and checks are those of `lit-rlhf fit`.

    Args:
        config: A YAML file, or the name of a shipped one such as `policy/ppo_lora` or `ppo`.
        overrides: What differs, from left to right: `key=value` as behind `--` on the command line, or further files.

    Raises:
        ConfigurationError: An option is wrong.

    Example:
        >>> import tempfile
        >>> from lit_rlhf.testing.tiny import write_tiny_world
        >>> tiny = write_tiny_world(tempfile.mkdtemp())
        >>> trainer, module, data = from_config(
        ...     "sft",
        ...     "overlays/tiny",
        ...     f"run_dir={tiny}/run",
        ...     f"model.backbone.name={tiny}/tiny-model",
        ...     f"data.tokenizer={tiny}/tiny-model",
        ...     f"data.train.path={tiny}/demonstrations.jsonl",
        ... )
        >>> type(module).__name__, type(data).__name__, trainer.max_epochs
        ('SupervisedModule', 'DemonstrationDataModule', 1)
    """
    words = ["fit", "-c", str(config)]
    for each in map(str, overrides):
        words += [f"--{each}"] if "=" in each else ["-c", each]
    made = start(_Prepared, words)
    made.before_fit()
    return Parts(made.trainer, made.model, made.datamodule)


def parsed(words: Sequence[str], called: str | None = None) -> tuple[str, Namespace]:
    """What a `fit` would run, as the YAML that it would save and as the parser has it; nothing is built.

    Args:
        words: The command line from `fit` on.
        called: As for `training.run`.

    Raises:
        ConfigurationError: An option is wrong, as far as the parser can tell.
    """
    cli = start(_Parsed, words, called)
    config: Namespace = cli.config[cli.subcommand]
    return parser_of(cli, "fit").dump(config, skip_none=False), config


def config_schema() -> dict[str, Any]:
    """The JSON schema of what `lit-rlhf fit` reads."""
    try:
        start(_Schema, ["fit"])
    except _Done as done:
        return done.schema
    raise AssertionError
