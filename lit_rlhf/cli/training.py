"""`lit-rlhf fit | validate | test | predict`: LightningCLI in subclass mode."""

import inspect
import os
import re
import shlex
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

# lightning 2.6 calls jsonargparse functions that are deprecated since 4.49; nothing a user could mend.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lit_rlhf.callbacks import (
    IterationCheckpoint,
    MetricsFile,
    PhaseProgressBar,
    PhaseTimer,
    Preemption,
    RunRecord,
    RunSummary,
)
from lit_rlhf.callbacks.checkpoint_io import install_atomic_io
from lit_rlhf.cli.commands import WRITES
from lit_rlhf.cli.functions import SWITCH
from lit_rlhf.cli.output import refuse_output
from lit_rlhf.cli.refusals import (
    PACKAGES,
    Constructor,
    ConstructorError,
    describe,
    own_error,
    raised_by_users,
    refuse_all_misfits,
    refused_by,
    sentence,
)
from lit_rlhf.cli.results import PREDICTIONS, WritePredictions, keep_evaluation, report_validated
from lit_rlhf.cli.shipped import with_found_configs
from lit_rlhf.errors import ConfigurationError, LitRLHFError
from lit_rlhf.internals.jsonargparse import (
    flat_options,
    read_none_as_null,
    write_words_as_text,
)
from lit_rlhf.internals.lightning import (
    CommandLineWins,
    callbacks_of,
    is_dry_run,
    print_to_stderr,
    silence_adverts,
)
from lit_rlhf.modules.monitors import watched
from lit_rlhf.modules.refusals import refuse_automatic_options, refuse_idle_options

# Their classes are known by short names in YAML.
for _package in PACKAGES:
    import_module(f"lit_rlhf.{_package}")

Made = TypeVar("Made", bound="TrainingCLI")
Kind = TypeVar("Kind", bound=Callback)


class SaveConfig(SaveConfigCallback):
    """Saves the configuration in the run's directory: where its CSV or TensorBoard logger writes, if it has one.

    Lightning's fails with loggers that write to no directory (MLflow's to a database), and leaves it in the current one
    with W&B's. It saves before a checkpoint is read, and for `validate` and its like too: the directory would then tell
    of a run that was refused, or trained nothing.

    Args:
        parser: Of the options.
        config: As `before_instantiate_classes` leaves it, with what follows from `run_dir`; not saved.
        given: As it was parsed: of use with another `run_dir` too.
        **options: SaveConfigCallback's.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Namespace, given: Namespace, **options: Any
    ) -> None:
        super().__init__(parser, given, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Not yet."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, now that nothing has refused this run."""
        if trainer.is_global_zero and not is_dry_run(trainer):
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write config.yaml; called on rank 0."""
        kinds = (CSVLogger, TensorBoardLogger)
        places = (each.log_dir for each in trainer.loggers if isinstance(each, kinds))
        path = Path(next(places, trainer.default_root_dir)) / self.config_filename
        path.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=False)


class TrainingCLI(CommandLineWins):
    """LightningCLI with one directory for a run, which says in a line what is wrong before any work starts.

    Args:
        *args: LightningCLI's.
        called: The command, to whose help refusals point.
        **options: LightningCLI's.
    """

    def __init__(self, *args: Any, called: str = "fit", **options: Any) -> None:
        self.called = called
        super().__init__(*args, **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of the commands that are of no class."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Directory of all that the run writes, where no other is named: logs, metrics.jsonl, samples.jsonl, "
            "checkpoints/, export/. The same as trainer.default_root_dir.",
        )
        parser.add_argument(
            "--profile",
            **SWITCH,
            help="Print and write a table of time, tokens and utilisation by phase, and the slowest operators (fit).",
        )
        parser.add_argument(
            "--log_json",
            **SWITCH,
            help="Write each line of metrics.jsonl to standard output too, and all else to standard error (fit).",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a wrong option is one message, without the usage of the whole Trainer."""
        words = sys.argv[1:] if args is None else args
        self.overwrite = "predict" in words[:1] and "--overwrite" in words
        if self.overwrite:  # no option of a configuration
            args = words = [word for word in words if word != "--overwrite"]
        self.command = shlex.join(["lit-rlhf", *map(str, words)])
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            said = describe(str(error), self.called)
            raise own_error(error) or ConfigurationError(said) from error

    def before_instantiate_classes(self) -> None:
        """Give the trainer the run's directory; refuse null where a value must be, and a seed that changes nothing."""
        options = self.config[self.subcommand]
        refuse_all_misfits(options)
        _refuse_lone_seed(options)
        self.save_config_kwargs["given"] = options.clone()
        if self.subcommand == "predict" and not options.trainer.fast_dev_run:
            home = options.run_dir or options.trainer.default_root_dir or ""
            written = WRITES["predict"]["run_dir"]
            refuse_output(Path(home) / PREDICTIONS, "--run_dir", written, overwrite=self.overwrite)
        _leave_out(options.trainer)
        if options.run_dir is None:
            return
        if options.trainer.default_root_dir not in (None, options.run_dir):
            raise ConfigurationError(
                f"run_dir={options.run_dir!r} and trainer.default_root_dir={options.trainer.default_root_dir!r} are "
                "two names of one directory: give one of them."
            )
        options.trainer.default_root_dir = options.run_dir
        # W&B's and MLflow's write to the current directory.
        for key, kind, given in flat_options(options):
            if key.startswith("trainer.logger") and "save_dir" in given:
                default = inspect.signature(kind).parameters["save_dir"].default
                if isinstance(default, str) and given["save_dir"] == default:
                    given["save_dir"] = str(Path(options.run_dir) / default)

    def instantiate_classes(self) -> None:
        """Build trainer, model and data; what their constructors refuse is said with the options that they were given.

        Anything may come from a constructor that isn't ours (`ModuleNotFoundError` of a logger's package, `TypeError`
        of a callback), and whatever it is, no work was done yet: the way out is another option.
        """
        constructor = Constructor()
        self.parser.add_instantiator(constructor, object)
        try:
            super().instantiate_classes()
        except MisconfigurationException:
            raise
        except Exception as error:
            theirs = raised_by_users(error)
            said = sentence(theirs) if theirs else describe(str(error), self.called)
            own = self._placed(constructor.error_behind(error))
            raise own or ConfigurationError(said) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; `devices: x` gets past the parser, for it may be a list as a string."""
        try:
            return super().instantiate_trainer(**kwargs)
        except Exception as error:
            options = vars(self.config[self.subcommand].trainer)
            strategy = options["strategy"]
            if isinstance(strategy, str) and re.search("[.A-Z]", strategy):
                raise ConfigurationError(
                    f"trainer.strategy={strategy!r} is none of Lightning's names for strategies. Of a class say that "
                    f"it is one: --trainer.strategy.class_path {strategy}"
                ) from error
            said = set(re.findall(r"\w+", str(error)))
            names = [name for name in options if name in said]
            names = names or ["accelerator", "devices", "num_nodes", "strategy", "precision"]
            where = ", ".join(f"trainer.{name}={options[name]!r:.80}" for name in names)
            raise own_error(error) or ConfigurationError(
                f"{where}: the Trainer can't be made: {sentence(error)}"
            ) from error

    def before_fit(self) -> None:
        """Refuse what would fail later; add record and summary; have the `PhaseTimer` profile, or add one."""
        self._check_checkpoint()
        if not self.model.automatic_optimization:
            refuse_automatic_options(self.trainer, self.model)
        refuse_idle_options(self.trainer)
        self._refuse_other_run()
        self._try_optimizer()
        options = self.config[self.subcommand]
        if options.trainer.num_sanity_val_steps is None:
            # Else a name that validation lacks is found behind the first epoch, whose work is lost.
            watches = any(name.startswith("val") for _, name in watched(self.trainer))
            self.trainer.num_sanity_val_steps = 2 * (watches and not is_dry_run(self.trainer))
        self._callback(RunSummary)
        if options.trainer.default_root_dir is not None:
            self._callback(RunRecord, self.command)
        if options.log_json:  # metrics to standard output, and what is for people to standard error
            print_to_stderr(self.trainer)
            self._callback(MetricsFile).echo = True
        if options.profile:
            self._callback(PhaseTimer, place=0).profile = True

    def before_validate(self) -> None:
        """Refuse what would fail later; add the summary; warn where the trained model is left alone."""
        self._check_checkpoint()
        self._callback(RunSummary)  # else Lightning misses the one whose state is in the checkpoint
        if self.config[self.subcommand].profile:
            raise ConfigurationError(
                f"--profile is of phases of training, of which `{self.subcommand}` has none: use it with `fit`."
            )
        self._warn_of_untrained()

    before_test = before_validate

    def before_predict(self) -> None:
        """The same; have what is predicted written."""
        self.before_validate()
        callbacks_of(self.trainer).append(WritePredictions())

    def after_validate(self) -> None:
        """Keep the numbers in the run's directory; and the page of `evaluate-reward`, where rows name subsets."""
        self.after_test()
        if self.config[self.subcommand].trainer.default_root_dir is not None:
            report_validated(self.trainer, self.model, self.datamodule, self.command)

    def after_test(self) -> None:
        """Keep the numbers in the run's directory."""
        if self.config[self.subcommand].trainer.default_root_dir is not None:
            keep_evaluation(self.trainer, self.command)

    def _callback(self, kind: type[Kind], *args: Any, place: int | None = None) -> Kind:
        """The trainer's callback of a class, added where there is none: behind the others, or at a place."""
        callbacks = callbacks_of(self.trainer)
        for each in callbacks:
            if isinstance(each, kind):
                return each
        made = kind(*args)
        callbacks.insert(len(callbacks) if place is None else place, made)
        return made

    def _placed(self, error: BaseException | None) -> LitRLHFError | None:
        """The library's own error behind another, with the option whose class raised what isn't ours."""
        own = own_error(error)
        if not isinstance(own, ConstructorError):
            return own
        made = flat_options(self.config[self.subcommand])
        key = next((key for key, kind, _ in made if kind is own.kind), "")
        return ConfigurationError(f"{key}: {own}" if key else str(own))

    def _check_checkpoint(self) -> None:
        """Refuse a checkpoint that isn't there, and read those that are as `IterationCheckpoint` does."""
        install_atomic_io(self.trainer)
        path = self.config[self.subcommand].ckpt_path
        if path is None or path in ("last", "hpc") or ":" in path:
            return
        if path == "best":
            raise ConfigurationError(
                "ckpt_path='best': which one is best is known to the process that trained alone. Give a file such as "
                "checkpoints/iteration-00000010.ckpt, or last for the newest in the run's directory."
            )
        sharded = isinstance(
            self.trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy
        )
        if not Path(path).exists() or (Path(path).is_dir() and not sharded):
            what = "is a directory" if Path(path).is_dir() else "isn't there"
            raise ConfigurationError(
                f"ckpt_path={path!r} {what}: give a file such as checkpoints/iteration-00000010.ckpt, or last for the "
                "newest in the run's directory."
            )

    def _warn_of_untrained(self) -> None:
        """Say that a run's checkpoints are left alone: the numbers would be taken for those of what it trained."""
        if self.config[self.subcommand].ckpt_path is not None:
            return
        for each in callbacks_of(self.trainer):
            if isinstance(each, IterationCheckpoint) and (newest := each.newest(self.trainer)):
                rank_zero_warn(
                    f"No checkpoint is read: `{self.subcommand}` looks at the model as training would begin with it, "
                    f"not at {newest}. --ckpt_path last takes that one."
                )

    def _refuse_other_run(self) -> None:
        """Before anything is written there: what lies in the directory goes on to speak of the run that made it."""
        goes_on = self.config[self.subcommand].ckpt_path is not None
        # Lightning finds it by itself.
        requeued = any(Path(self.trainer.default_root_dir).glob("hpc_ckpt*"))
        if not self.runs or goes_on or requeued:
            return
        for each in callbacks_of(self.trainer):
            if isinstance(each, IterationCheckpoint):
                each.refuse_other_run(self.trainer)

    def _try_optimizer(self) -> None:
        """Call what makes optimizer and schedule once, on a parameter of its own: torch refuses bad options there."""
        make = getattr(self.model, "optimizer_factory", None) or torch.optim.AdamW
        try:
            optimizer = make([{"params": [nn.Parameter(torch.zeros(1))]}])
            if (schedule := getattr(self.model, "lr_scheduler_factory", None)) is not None:
                schedule(optimizer)
        except ConstructorError as error:
            raise self._placed(error) or error from error


def _refuse_lone_seed(options: Any) -> None:
    """Refuse a seed of the global generators alone: the library draws from none, so another would give the same run.

    Raises:
        ConfigurationError: It is given, and the module's seed isn't.
    """
    seed = options.seed_everything
    # Options of a class of one's own may be called otherwise, and 0 is what all of them are by default.
    if seed and options.model.get("init_args", {}).get("seed") == 0:
        raise ConfigurationError(
            f"seed_everything={seed} with model.seed=0 changes nothing: it seeds generators that the library doesn't "
            f"draw from. Give --model.seed {seed} --data.seed {seed} (draws, order of the rows) in its place, or "
            "--seeds 0 1 2, which trains once with each."
        )


def _leave_out(trainer: Namespace) -> None:
    """Leave out callbacks of a file that an option switches off or replaces: Lightning refuses the two together.

    `enable_progress_bar: false` leaves out all bars, another bar PhaseProgressBar, and `enable_checkpointing: false`
    what saves checkpoints, with Preemption, which has that done.
    """
    if not isinstance(trainer.callbacks, list):
        return
    kinds = [next(flat_options(each), ("", object, {}))[1] for each in trainer.callbacks]
    bars = [kind for kind in kinds if issubclass(kind, ProgressBar)]
    out: tuple[type, ...] = ()
    if trainer.enable_progress_bar is False:
        out += (ProgressBar,)
    elif len(bars) > 1:
        out += (PhaseProgressBar,)
    if trainer.enable_checkpointing is False:
        out += (Checkpoint, Preemption)
    pairs = zip(trainer.callbacks, kinds, strict=True)
    trainer.callbacks = [each for each, kind in pairs if not issubclass(kind, out)]


def run(words: Sequence[str], called: str | None = None) -> None:
    """Parse a command line and run it; `called` is the command, where it stands for a `fit`."""
    start(TrainingCLI, ["--help" if word == "--help-all" else word for word in words], called)


def start(kind: type[Made], words: Sequence[str], called: str | None = None) -> Made:
    """Parse a command line, and do with it what the class does.

    Args:
        kind: The class.
        words: From `fit` or its like on.
        called: The command that these words stand for; default: the first of them.
    """
    read_none_as_null()
    write_words_as_text()
    silence_adverts()
    # The words differ from those of the process where a configuration is named; Lightning warns of any `args`.
    warnings.filterwarnings(
        "ignore", message="LightningCLI's args parameter is intended to run from within Python"
    )
    try:
        return kind(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={
                "log_every_n_steps": 1,
                # Two where a callback watches a name of validation, else none.
                "num_sanity_val_steps": None,
                "use_distributed_sampler": False,
                "enable_model_summary": False,  # RunSummary says it in a line; theirs counts 0 FLOPs
            },
            parser_kwargs={
                "prog": "lit-rlhf",
                "default_env": False,
                "exit_on_error": False,
                words[0]: {"exit_on_error": False},
            },
            args=with_found_configs(words),
            command=words[0],
            called=called or words[0],
        )
    except MisconfigurationException as error:
        raise ConfigurationError(str(error)) from error
    except (ValueError, TypeError, RuntimeError) as error:
        if not refused_by(error, "lightning"):
            raise
        raise ConfigurationError(sentence(error)) from error
