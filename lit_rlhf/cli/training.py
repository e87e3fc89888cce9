"""`lit-rlhf fit | validate | test | predict`: LightningCLI in subclass mode."""

import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

# lightning 2.6 calls jsonargparse functions that are deprecated since 4.49; nothing a user could mend.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_rlhf.callbacks import PhaseTimer
from lit_rlhf.callbacks.lightning_internals import callbacks_of
from lit_rlhf.cli.complaints import PACKAGES, describe, own_error
from lit_rlhf.errors import ConfigurationError

COMMANDS = ("fit", "validate", "test", "predict")


class TrainingCLI(LightningCLI):
    """LightningCLI whose command line wins over what a checkpoint remembers, and which says in a line what is wrong."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of the commands that are of no class."""
        parser.add_argument(
            "--profile",
            type=bool,
            nargs="?",
            const=True,
            default=False,
            help="Print and write a table of time, tokens and utilisation by phase, and the slowest operators (fit).",
        )

    def before_fit(self) -> None:
        """Have the run's `PhaseTimer` profile, or add one."""
        if not self._get(self.config, "profile"):
            return
        timers = [
            callback for callback in callbacks_of(self.trainer) if isinstance(callback, PhaseTimer)
        ]
        if timers:
            timers[0].profile = True
        else:
            callbacks_of(self.trainer).insert(0, PhaseTimer(profile=True))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a wrong option is one message, without the usage of the whole Trainer."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise own_error(error) or ConfigurationError(describe(str(error))) from error

    def instantiate_classes(self) -> None:
        """Build trainer, model and data; what their constructors refuse comes without the parser's wrapping."""
        try:
            super().instantiate_classes()
        except MisconfigurationException as error:
            raise ConfigurationError(str(error)) from error
        except ValueError as error:
            own = own_error(error)
            if own is None:
                raise
            raise own from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (
            TypeError,
            ValueError,
        ) as error:  # `devices: x` gets past the parser, for it may be a list as a string
            where = ", ".join(
                f"trainer.{name}={config.get(name)!r}"
                for name in ("accelerator", "devices", "num_nodes")
            )
            raise own_error(error) or ConfigurationError(
                f"{where}: the Trainer can't be made: {error}"
            ) from error

    def _run_subcommand(self, subcommand: str) -> None:
        self._refuse_trainer_options()
        if subcommand != "fit" and self._get(self.config, "profile"):
            raise ConfigurationError(
                f"--profile is of phases of training, of which `{subcommand}` has none: use it with `fit`."
            )
        try:
            super()._run_subcommand(subcommand)
        except MisconfigurationException as error:
            raise ConfigurationError(str(error)) from error

    def _refuse_trainer_options(self) -> None:
        # Lightning refuses both, and names as the way out an automatic optimization that these modules can't have.
        if self.model.automatic_optimization:
            return
        name = type(self.model).__name__
        if self.trainer.gradient_clip_val is not None:
            raise ConfigurationError(
                f"trainer.gradient_clip_val={self.trainer.gradient_clip_val}: {name} steps its optimizer itself and "
                "clips there. Remove it, and set model.updates.max_grad_norm."
            )
        if self.trainer.accumulate_grad_batches != 1:
            raise ConfigurationError(
                f"trainer.accumulate_grad_batches={self.trainer.accumulate_grad_batches}: {name} sums gradients over "
                "microbatches itself. Remove it, and set model.updates.microbatch_tokens (memory), model.updates.minibatches "
                "(optimizer steps per pass) or data.batch_size."
            )

    def _parse_ckpt_path(self) -> None:
        # Lightning lets the hyper-parameters stored in the checkpoint of --ckpt_path override flags and YAML in silence
        # (Lightning issue 21455). What the user wrote holds; what doesn't fit is refused by
        # RLHFModule.on_load_checkpoint.
        return


def run(words: Sequence[str]) -> None:
    """Parse a command line and run it."""
    own_command_line = list(words) == sys.argv[1:]
    words = ["--help" if word == "--help-all" else word for word in words]
    _import_components()
    # `main([...])` from Python is how tests and notebooks run a configuration; Lightning warns of any `args`.
    warnings.filterwarnings(
        "ignore", message="LightningCLI's args parameter is intended to run from within Python"
    )
    TrainingCLI(
        model_class=LightningModule,
        datamodule_class=LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
        },
        parser_kwargs={
            "prog": "lit-rlhf",
            "default_env": False,
            "exit_on_error": False,
            **{command: {"exit_on_error": False} for command in COMMANDS},
        },
        # Only what was passed in code: children of a multi-process run read their own command line.
        args=None if own_command_line and words == sys.argv[1:] else words,
    )


def _import_components() -> None:
    """Import the packages whose classes are known by their short names in YAML."""
    for package in PACKAGES:
        __import__(f"lit_rlhf.{package}")
