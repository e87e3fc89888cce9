"""`lit-rlhf fit | validate | test | predict`: LightningCLI in subclass mode."""

import os
import sys
import warnings
from collections.abc import Sequence

# lightning 2.6 calls jsonargparse functions that are deprecated since 4.49; nothing a user could mend.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI


class TrainingCLI(LightningCLI):
    """LightningCLI whose command line wins over what a checkpoint remembers."""

    def _parse_ckpt_path(self) -> None:
        # Lightning lets the hyper-parameters stored in the checkpoint of --ckpt_path override flags and YAML in silence
        # (Lightning issue 21455). What the user wrote holds; what doesn't fit is refused by RLHFModule.on_load_checkpoint.
        return


def run(words: Sequence[str]) -> None:
    """Parse a command line and run it."""
    own_command_line = list(words) == sys.argv[1:]
    words = ["--help" if word == "--help-all" else word for word in words]
    _import_components()
    # `main([...])` from Python is how tests and notebooks run a configuration; Lightning warns of any `args`.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended to run from within Python")
    TrainingCLI(
        model_class=LightningModule,
        datamodule_class=LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"log_every_n_steps": 1, "num_sanity_val_steps": 0, "use_distributed_sampler": False},
        parser_kwargs={"default_env": False},
        # Only what was passed in code: children of a multi-process run read their own command line.
        args=None if own_command_line and words == sys.argv[1:] else words,
    )


def _import_components() -> None:
    """Import the packages whose classes are known by their short names in YAML."""
    for package in ("callbacks", "data", "modules", "objectives", "rewards", "rollout"):
        __import__(f"lit_rlhf.{package}")
