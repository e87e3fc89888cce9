"""Of Lightning, read from 2.6: its loops, its logger connector, and what its command line does with checkpoints."""

import inspect
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import (
    _MultiProcessingLauncher,
    _SubprocessScriptLauncher,
)
from lightning.pytorch.trainer.connectors.logger_connector.result import warning_cache
from lightning.pytorch.trainer.connectors.signal_connector import _HandlersCompose
from lightning.pytorch.tuner.lr_finder import _LRCallback
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.parsing import lightning_hasattr
from rich import reconfigure
from rich.table import Column
from torch import Tensor
from torch.distributed.constants import default_pg_timeout

EpochMeans = dict[str, dict[str, Tensor]]
"""Running sums of what is logged per epoch: key of Lightning's result collection -> name of the state -> value."""

_STATES = ("value", "cumulated_batch_size")

# Said of choices that this library makes for its users, or of what its own parts take care of.
_NOISE = (
    # ModelCheckpoint in manual optimization; weights after the step are what we want
    r".*no pre-optimization state was saved.*",
    # the position is in the DataModule's state
    r".*your dataloader is not resumable.*",
    # frozen reference and reward models
    r".*module\(s\) in eval mode at the start of training.*",
    # IterationCheckpoint says it better
    r".*there is no last checkpoint available.*",
    # loaders serve tokenized rows; workers gain nothing
    r".*does not have many workers which may be a bottleneck.*",
    # between Lightning 2.6 and torch 2.13
    r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*torch.distributed.nn.functional.all_gather is deprecated.*",
    # overlays/ddp.yaml has it; what is named in its place still sends them at the beginning
    r"`broadcast_buffers` is deprecated.*",
    # log-probs are views, which nothing changes in place
    r"FSDP2-wrapped module .* returned a view tensor.*",
)


_ADVERTS = (
    *("💡 Tip:", "TPU available: False", "GPU available: False"),
    *("`Trainer.fit` stopped:", "`Trainer(limit_"),  # RunSummary and the progress say the same
)


def silence_noise() -> None:
    """Ignore Lightning's warnings about what the library does on purpose."""
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)


def silence_adverts() -> None:
    """Leave out of Lightning's log what it recommends, devices that aren't there, and what we say ourselves."""
    # `logger: true` of the configurations is TensorBoard where it is installed, as their comment says.
    removed = r".*`tensorboardX` has been removed as a dependency.*"
    warnings.filterwarnings("ignore", message=removed)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith(_ADVERTS)
    )


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The trainer's callbacks, in the order of their calls."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def call_last(trainer: Trainer, callback: Callback) -> None:
    """Move a callback behind all others."""
    others = [other for other in callbacks_of(trainer) if other is not callback]
    trainer.callbacks = [*others, callback]  # type: ignore[attr-defined]


def saves_every_n_steps(callback: Callback) -> int:
    """The `every_n_train_steps` of a ModelCheckpoint; 0 of others, and where it isn't set."""
    return callback._every_n_train_steps if isinstance(callback, ModelCheckpoint) else 0


def lacks_rate_of(finder: LearningRateFinder, module: LightningModule) -> bool:
    """Whether a module has no attribute of the name that a finder of learning rates is to set."""
    names = [finder._attr_name] if finder._attr_name else ["lr", "learning_rate"]
    return finder._update_attr and not any(lightning_hasattr(module, name) for name in names)


def tries_rates(trainer: Trainer) -> bool:
    """Whether `LearningRateFinder` trains, with rates of its own."""
    return any(isinstance(callback, _LRCallback) for callback in callbacks_of(trainer))


def save_hyperparameters(owner: Any, *args: Any, **options: Any) -> None:
    """What `owner.save_hyperparameters`, which calls this, does: as Lightning's, but objects are not copied.

    Its `_set_hparams` must call `set_hyperparameters`.
    """
    # The caller of owner.save_hyperparameters has the arguments. A frame in its own variable is a circle: it would keep
    # what all callers hold, such as loaders with their workers, until garbage is looked for.
    options["frame"] = options.get("frame") or sys._getframe(2)
    owner._objects = {}
    HyperparametersMixin.save_hyperparameters(owner, *args, **options)
    owner.hparams.update(owner._objects)
    owner._objects = {}


def set_hyperparameters(
    owner: Any,
    given: Any,
    is_plain: Callable[[object], bool],
    told: Callable[[Any], str] | None = None,
) -> None:
    """Set what Lightning goes on to copy, and put the objects of it aside.

    Args:
        owner: A module or a DataModule.
        given: Its hyper-parameters.
        is_plain: Whether one of them is no object.
        told: What stands for an object where loggers are told of it; None: nothing does.
    """
    if isinstance(given, dict):
        owner._objects = {name: value for name, value in given.items() if not is_plain(value)}
        plain = {name: value for name, value in given.items() if name not in owner._objects}
        named = {} if told is None else {n: told(value) for n, value in owner._objects.items()}
        given = plain | named
    HyperparametersMixin._set_hparams(owner, given)


def is_dry_run(trainer: Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which must leave nothing behind."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def step_in_each_batch(trainer: Trainer, steps: int) -> None:
    """Let a `fast_dev_run` take so many optimizer steps in each of its batches: by itself it ends after one in each."""
    trainer.fit_loop.epoch_loop.max_steps = steps * int(trainer.fast_dev_run)  # type: ignore[attr-defined]


def iterations_done(trainer: Trainer) -> int:
    """Training batches completed in the whole run, those before a resume included."""
    return trainer.fit_loop.total_batch_idx + 1


def is_accumulating(trainer: Trainer) -> bool:
    """Whether gradients of this batch wait for more batches (`accumulate_grad_batches`): no checkpoint holds those."""
    return trainer.fit_loop._should_accumulate()


def is_last_batch(trainer: Trainer) -> bool:
    """Whether the epoch ends with this batch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


class _Peekable(Iterator[Any]):
    """An iterator whose next item can be looked at before it comes."""

    def __init__(self, loader: CombinedLoader, items: Iterator[Any]) -> None:
        self._loader, self._items = loader, items
        self.seen: list[Any] = []
        self.states: list[dict[str, Any]] = []
        """Of the loaders before they gave what was seen."""

    def __next__(self) -> Any:
        return self.seen.pop() if self.seen else next(self._items)

    def peek(self) -> Any:
        """The next item, or None behind the last."""
        if not self.seen:
            self.states = self._loader._state_dicts()
            item = next(self._items, None)  # `iter` of it, in a loop, would begin anew
            self.seen += [] if item is None else [item]
        return self.seen[0] if self.seen else None


def next_batch(trainer: Trainer) -> Any:
    """The batch of the next training step, on this process's device; None where the epoch ends with this one."""
    fetcher: Any = trainer.fit_loop._data_fetcher
    if fetcher is None or is_last_batch(trainer):
        return None
    if fetcher.batches:  # of loaders without a length Lightning is one ahead itself
        item = fetcher.batches[0]
    else:
        if not isinstance(fetcher.iterator, _Peekable):
            fetcher.iterator = _Peekable(fetcher.combined_loader, fetcher.iterator)
        item = fetcher.iterator.peek()
    if item is None or item[0] is None:
        return None
    batch = trainer.lightning_module._on_before_batch_transfer(item[0], dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch)


def batches_peeked(trainer: Trainer) -> int:
    """How many batches `next_batch` has taken from the loader whose step has not begun: 0 or 1."""
    iterator = getattr(trainer.fit_loop._data_fetcher, "iterator", None)
    return len(iterator.seen) if isinstance(iterator, _Peekable) else 0


def save_before_peek(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Have a checkpoint hold the loaders' own states from before `next_batch` took a batch whose step hasn't begun."""
    if batches_peeked(trainer):
        iterator: Any = trainer.fit_loop._data_fetcher.iterator  # type: ignore[union-attr]
        checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = iterator.states


def is_within_iteration(trainer: Trainer) -> bool:
    """Whether a training step has begun and not ended."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(progress.started > progress.processed)


def writes_shards(trainer: Trainer) -> bool:
    """Whether a checkpoint would be a directory with a part for each process."""
    strategy = trainer.strategy
    if isinstance(strategy, ModelParallelStrategy):
        return strategy._save_distributed_checkpoint
    return isinstance(strategy, FSDPStrategy) and strategy._state_dict_type == "sharded"


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes of the run, however many machines they are on; its name is "fsdp2".

    Lightning's own default divides parameters by tensor parallelism within a machine, which no model here is laid out
    for. Checkpoints are one file, which any number of processes can load.

    Args:
        process_group_backend: "nccl" or "gloo"; default: what fits the device.
        timeout: Longest that a process waits for another in a collective.
    """

    def __init__(
        self,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        """Divide by the number of processes, which isn't known before."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load weights and optimizer, which Lightning does before the module sees the checkpoint: it is asked first."""
        path = self.broadcast(checkpoint_path)
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
        check = getattr(self.lightning_module, "check_checkpoint", None)
        if check is not None:
            check(checkpoint)
        return super().load_checkpoint(path, weights_only)


def without_inference_mode(trainer: Trainer) -> None:
    """Validate, test and predict under `no_grad`: FSDP2 keeps what it gathers into, and training can't write there."""
    for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
        loop.inference_mode = False  # within `fit` it always is


StrategyRegistry.register("fsdp2", FSDP2Strategy, "Parameters divided over all processes (FSDP2)")


def collective_timeout(trainer: Trainer) -> float:
    """Seconds after which the strategy gives up a collective that not all processes have come to."""
    timeout = getattr(trainer.strategy, "_timeout", None) or default_pg_timeout
    seconds: float = timeout.total_seconds()
    return seconds


def will_validate(trainer: Trainer) -> bool:
    """Whether validation runs right after this batch."""
    fetcher, loop = trainer.fit_loop._data_fetcher, trainer.fit_loop.epoch_loop
    return fetcher is not None and loop._should_check_val_fx(fetcher)


def requeue_signal(trainer: Trainer) -> signal.Signals | None:
    """Of SLURM: what Lightning takes as the word to save at once and queue the job again; None where it doesn't."""
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal
    return None


def saves_within_iterations(trainer: Trainer) -> bool:
    """Whether Lightning's own handler of that signal is in place."""
    number = requeue_signal(trainer)
    return number is not None and isinstance(signal.getsignal(number), _HandlersCompose)


def is_stopping(trainer: Trainer) -> bool:
    """Whether training ends after this batch because something asked for it (a time limit, early stopping)."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early


def current_metrics(trainer: Trainer) -> dict[str, float]:
    """What loggers will be given at this point: of the step in a training step's hooks, of the epoch in epoch hooks.

    All ranks must call it: metrics of an epoch are reduced when they are first asked for.
    """
    metrics: dict[str, Any] = trainer._logger_connector.metrics["log"]
    return {name: float(value) for name, value in metrics.items()}


def logged_in_training(trainer: Trainer) -> set[str]:
    """Names of what was logged since the epoch began, those included that are told at its end."""
    results = trainer.fit_loop.epoch_loop._results.values()
    names = {metric.meta.forked_name(by_step) for metric in results for by_step in (True, False)}
    return names | {metric.meta.name for metric in results} | set(trainer.callback_metrics)


def log_reduced(module: LightningModule, name: str, value: float, rows: int) -> None:
    """Log a number that is the same on all processes already, without Lightning's advice to reduce it."""
    warning_cache.add(
        f"It is recommended to use `self.log({name!r}, ..., sync_dist=True)` when logging on epoch level in "
        "distributed setting to accumulate the metric across devices."
    )
    module.log(name, value, batch_size=rows)


def epoch_means(trainer: Trainer) -> EpochMeans:
    """This process's running sums of training metrics that are logged per epoch; empty between epochs."""
    loop = trainer.fit_loop
    current: Any = loop.epoch_progress.current
    if current.processed == current.ready:
        return {}
    means: EpochMeans = {}
    for key, metric in loop.epoch_loop._results.items():
        if metric.is_tensor and metric.meta.on_epoch and not metric.has_reset:
            states = [name for name in _STATES if hasattr(metric, name)]
            means[key] = {name: getattr(metric, name).detach().cpu() for name in states}
    return means


def add_epoch_means(trainer: Trainer, before: EpochMeans) -> None:
    """Add running sums from before a resume to those of the first batch after it.

    A sum of two numbers doesn't depend on their order, so the result is that of an uninterrupted run to the last bit.
    """
    for key, metric in trainer.fit_loop.epoch_loop._results.items():
        saved = before.get(key)
        if saved is None:
            continue
        for name, value in saved.items():
            old, new = value.to(metric.value.device), getattr(metric, name)
            if metric.meta.is_max_reduction or metric.meta.is_min_reduction:
                combine = torch.maximum if metric.meta.is_max_reduction else torch.minimum
                setattr(metric, name, combine(old, new))
            else:
                setattr(metric, name, old + new)
        metric._computed = None


class CommandLineWins(LightningCLI):
    """LightningCLI whose options hold, whatever the checkpoint of `--ckpt_path` remembers; an error ends all processes.

    Lightning lets hyper-parameters that are stored there override flags and YAML in silence (its issue 21455). After an
    error in the first process those that it started wait for it, and end with another that says nothing of the cause.
    Of its four commands the one that is called gets a parser: to build one is slow.

    Args:
        *args: LightningCLI's.
        command: The one that is called.
        **options: LightningCLI's.
    """

    runs = True
    """Whether the command is run once all is built."""

    def __init__(self, *args: Any, command: str = "fit", **options: Any) -> None:
        self._command = command
        super().__init__(*args, **options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The command that is called, with the arguments of the Trainer's method that are no options."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the Trainer's options, with numbers of batches that stay whole."""
        _keep_whole_numbers()
        super().add_core_arguments_to_parser(parser)

    def _parse_ckpt_path(self) -> None:
        return

    def _run_subcommand(self, subcommand: str) -> None:
        if not self.runs:
            return
        try:
            super()._run_subcommand(subcommand)
        except BaseException as error:
            launcher = self.trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                if isinstance(error, Exception):
                    launcher.kill(signal.SIGKILL)
                # Its thread, which looks after them, would kill this process too, with its word unsaid.
                launcher.procs.clear()
            raise


def _keep_whole_numbers() -> None:
    """Have `limit_train_batches: 1` mean one batch on the command line, and never 1.0, which is all of them.

    Of a type that is met again in another order `typing` gives the one it made first, and the float would be tried
    first: whether Lightning's `Optional[Union[int, float]]` is what it says hangs on what was imported before it.
    """
    annotations = inspect.unwrap(Trainer.__init__).__annotations__
    for name, kind in annotations.items():
        members = get_args(kind)
        if int in members and float in members:
            others = [member for member in members if member not in (int, float)]
            # Before str, which takes any number.
            annotations[name] = reduce(or_, others, int | float)


def sends_back(trainer: Trainer) -> bool:
    """Whether processes of this Trainer hand the module's `state_dict` to the one that started them: `ddp_spawn`."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def has_trainer(module: LightningModule) -> bool:
    """Whether a Trainer runs a module, not a loop of one's own or Fabric."""
    return module._trainer is not None


def loss_scaler(module: LightningModule) -> Any:
    """The GradScaler of `trainer.precision: 16-mixed`; None elsewhere, and of a module that no trainer has."""
    trainer = module._trainer
    return None if trainer is None else getattr(trainer.precision_plugin, "scaler", None)


def print_to_stderr(trainer: Trainer) -> None:
    """Have everything that rich prints on standard error, bars too: each gives rich's console its own options."""
    reconfigure(stderr=True)
    for callback in callbacks_of(trainer):
        if isinstance(callback, RichProgressBar):
            callback._console_kwargs = {**callback._console_kwargs, "stderr": True}


def place_metrics(bar: RichProgressBar, column: Column) -> None:
    """Give the metrics of a bar that is being made their column of its table; Lightning's wraps them."""
    if bar._metric_component is not None:
        bar._metric_component._table_column = column


def parser_of(cli: LightningCLI, command: str) -> LightningArgumentParser:
    """The parser of one of its commands."""
    parser: LightningArgumentParser = cli._parser(command)
    return parser
