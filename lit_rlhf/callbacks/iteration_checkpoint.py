"""Checkpoints counted in iterations, from which a killed run goes on as if nothing had happened."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_rlhf.callbacks.checkpoint_io import (
    checkpoint_problem,
    install_atomic_io,
    refuse_non_finite,
)
from lit_rlhf.distributed import gather_objects
from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.files import DirectoryLock, free_name, remove_stale_files
from lit_rlhf.internals.lightning import (
    EpochMeans,
    add_epoch_means,
    call_last,
    epoch_means,
    is_accumulating,
    is_dry_run,
    is_last_batch,
    is_stopping,
    is_within_iteration,
    iterations_done,
    saves_within_iterations,
    silence_noise,
    will_validate,
    writes_shards,
)
from lit_rlhf.options import check_option

SaveListener = Callable[[Trainer, Path], None]
"""Called on every rank after a checkpoint is on disk."""

_KEY = "lit_rlhf.IterationCheckpoint"
_NAME = re.compile(r"^iteration-(\d+)\.ckpt$")


class IterationCheckpoint(ModelCheckpoint):
    """Saves the run every few iterations, between iterations only, and finds the newest checkpoint that is whole.

    An iteration is a training batch: a whole rollout and its updates for policies, a batch of rows for supervised,
    reward and preference modules. After each `every_n_iterations` of them, and when training ends or is told to stop,
    the file `iteration-<n>.ckpt` is written atomically (`AtomicCheckpointIO` is installed unless another IO was
    chosen). Where validation or the epoch's end follow the batch, it is saved after those, so that a resumed run
    neither skips nor repeats them. While gradients accumulate it waits, and after an exception it saves nothing: a
    policy in the middle of its updates is no state to go on from.

    `trainer.fit(ckpt_path="last")`, on the command line `--ckpt_path last`, goes on from the newest checkpoint in
    `dirpath` that loads completely. It says so when one had to be passed over, or when there is none and training
    starts anew.

    Args:
        dirpath: Directory of this run's checkpoints; fixed, so that a restarted run finds it. Default: `checkpoints` in
            the trainer's `default_root_dir` (on the command line, `--run_dir`).
        every_n_iterations: At most this many iterations are lost by a kill.
        keep_last: How many checkpoints to keep, at least 2, lest a damaged file be the only one.

    Raises:
        ConfigurationError: An option is out of range, the strategy writes checkpoints in parts, `trainer.max_steps` is
            set, or a run starts anew in a directory that holds another's checkpoints.
        CheckpointError: A checkpoint can't be written, none of those in `dirpath` loads, or the number of processes is
            another than when it was written.
    """

    def __init__(
        self, dirpath: str | None = None, every_n_iterations: int = 10, keep_last: int = 2
    ) -> None:
        every = every_n_iterations
        check_option(every >= 1, self, "every_n_iterations", every, "at least 1")
        allowed = "at least 2, lest a damaged file be the only checkpoint"
        check_option(keep_last >= 2, self, "keep_last", keep_last, allowed)
        # Every trigger of the base class is off: it counts optimizer steps, and knows no iterations.
        super().__init__(dirpath=dirpath, save_top_k=0, every_n_train_steps=0, every_n_epochs=0)
        self.every_n_iterations = every_n_iterations
        self.keep_last = keep_last
        self.listeners: list[SaveListener] = []
        self.last_saved = 0
        self._lock: DirectoryLock | None = None
        self._due = False
        self._means_before: EpochMeans = {}

    @property
    def state_key(self) -> str:
        """One per run, whatever the options, so that they may change on resume."""
        return type(self).__qualname__

    @property
    def directory(self) -> Path:
        """Where the checkpoints are."""
        return Path(str(self.dirpath))

    def _take_directory(self, trainer: Trainer) -> None:
        if self.dirpath is None:
            self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")

    # -- before training ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install atomic writing and move behind all other callbacks, whose state is saved with the run."""
        self._take_directory(trainer)
        super().setup(trainer, pl_module, stage)
        silence_noise()
        if stage != "fit":
            return
        if writes_shards(trainer):
            raise ConfigurationError(
                f"{type(trainer.strategy).__name__} would write checkpoints in parts, which can't be replaced in one "
                "step and hold no frozen weights, without which Lightning loads none. Set its "
                "save_distributed_checkpoint: false."
            )
        # A dry run sets max_steps itself; 0 is refused elsewhere.
        if trainer.max_steps not in (-1, 0) and not is_dry_run(trainer):
            raise ConfigurationError(
                f"trainer.max_steps={trainer.max_steps} with IterationCheckpoint: from a checkpoint at the end of an "
                "epoch Lightning would enter that epoch once more (its issue 19617), and the rows would come in "
                f"another order than in an unbroken run. Add StopAfter(steps={trainer.max_steps}) to trainer.callbacks "
                f"in its place (--trainer.callbacks+ StopAfter --trainer.callbacks.steps {trainer.max_steps}), or set "
                "trainer.max_epochs."
            )
        call_last(trainer, self)
        install_atomic_io(trainer)
        if trainer.is_global_zero and not is_dry_run(trainer):
            self._lock = DirectoryLock(self.directory)
            self._lock.take()
            remove_stale_files(self.directory)

    def refuse_other_run(self, trainer: Trainer) -> None:
        """Before a run that goes on from nothing.

        Raises:
            ConfigurationError: The directory holds checkpoints of later iterations than are done.
        """
        self._take_directory(trainer)
        later = [] if is_dry_run(trainer) else self._later(trainer)
        if later:
            raise ConfigurationError(
                f"{self.dirpath} holds checkpoints of an earlier run (the newest: {later[0].name}). Give --ckpt_path "
                "last to go on from there. For a new run give another --run_dir (from Python: IterationCheckpoint's "
                "dirpath), or remove this directory."
            )

    def _later(self, trainer: Trainer) -> list[Path]:
        done = iterations_done(trainer)
        return [path for number, path in self.checkpoints() if number > done]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let another run have the directory."""
        if self._lock is not None:
            self._lock.release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let another run have the directory; after Ctrl-C say what was lost, and how to go on."""
        if isinstance(exception, KeyboardInterrupt) and self._lock is not None:
            newest = self.newest(trainer)
            way = f"--ckpt_path last goes on from {newest}" if newest else "it can only start anew"
            rank_zero_warn(f"Interrupted. What came behind the last checkpoint is lost: {way}.")
        self.teardown(trainer, pl_module, "fit")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to mix two runs in one directory; set aside checkpoints of iterations that will be redone."""
        if saves_within_iterations(trainer):
            rank_zero_warn(
                "On SLURM's signal before a job's time is up, Lightning will save within the iteration, from where no "
                "policy can go on. Add Preemption to trainer.callbacks: it lets the iteration end, saves, and has the "
                "job queued again."
            )
        self.last_saved = iterations_done(trainer)
        self._due = False
        later = self._later(trainer)
        if trainer.ckpt_path is None:
            self.refuse_other_run(trainer)
        # All have looked before rank 0 moves files.
        trainer.strategy.barrier("IterationCheckpoint.on_train_start")
        if is_dry_run(trainer) or not later:
            return
        rank_zero_warn(
            f"The run goes on from iteration {self.last_saved} ({trainer.ckpt_path}); checkpoints of later iterations "
            f"in {self.dirpath} are renamed to *.abandoned: {', '.join(path.name for path in later)}."
        )
        if trainer.is_global_zero:
            for path in later:
                path.rename(free_name(path.with_name(path.name + ".abandoned")))

    # -- when to save -------------------------------------------------------------------------------------------------

    def request(self) -> None:
        """Save at the next boundary, due or not; every rank must ask."""
        self._due = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save here, unless validation or the end of the epoch come first."""
        if self._means_before:
            add_epoch_means(trainer, self._means_before)
            self._means_before = {}
        stopping = is_stopping(trainer)
        self._due |= stopping or iterations_done(trainer) % self.every_n_iterations == 0
        if is_last_batch(trainer) or (will_validate(trainer) and not stopping):
            return
        self._save_if_due(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation within an epoch."""
        fits = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fits and not is_last_batch(trainer):
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch and the validation at its end."""
        self._save_if_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the last regular checkpoint missed."""
        self.request()
        self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        iteration = iterations_done(trainer)
        if not self._due or is_dry_run(trainer) or is_accumulating(trainer):
            return
        self._due = False
        if iteration != self.last_saved:
            self._save(trainer, iteration)

    # -- saving and finding -------------------------------------------------------------------------------------------

    def _save(self, trainer: Trainer, iteration: int) -> None:
        refuse_non_finite(trainer, trainer.lightning_module)
        path = self.directory / f"iteration-{iteration:08d}.ckpt"
        self.last_saved = iteration
        self.last_model_path = self.best_model_path = str(path)
        self._save_checkpoint(trainer, str(path))
        if trainer.is_global_zero:
            for number, old in self.checkpoints()[self.keep_last :]:
                if number < iteration:
                    trainer.strategy.remove_checkpoint(old)
        trainer.strategy.barrier("IterationCheckpoint.saved")
        for listener in self.listeners:
            listener(trainer, path)

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Iterations and paths of the checkpoints there are, the newest first."""
        paths = self.directory.iterdir() if self.directory.is_dir() else []
        numbered = [(int(match[1]), path) for path in paths if (match := _NAME.match(path.name))]
        return sorted(numbered, reverse=True)

    def newest(self, trainer: Trainer) -> Path | None:
        """The newest checkpoint of the trainer's run, whole or not."""
        self._take_directory(trainer)
        return next((path for _, path in self.checkpoints()), None)

    def newest_whole(self) -> Path | None:
        """The newest checkpoint that loads completely; says which were passed over.

        Raises:
            CheckpointError: There are some, and none loads.
        """
        torn: list[str] = []
        for _, path in self.checkpoints():
            problem = checkpoint_problem(path)
            if problem is None:
                if torn:
                    said = "; ".join(torn)
                    rank_zero_warn(f"Passed over {said} Going on from {path.name} instead.")
                return path
            torn.append(f"{path.name}: {problem}")
        if torn:
            raise CheckpointError(
                f"None of the checkpoints in {self.dirpath} loads: {'; '.join(torn)} Restore one, or move them away to "
                "start anew."
            )
        return None

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        # What Lightning asks of each ModelCheckpoint for ckpt_path="last"; it then takes the newest of all.
        silence_noise()
        self._take_directory(trainer)
        found = self.newest_whole()
        if found is not None:
            return {str(found)}
        if trainer.state.fn != TrainerFn.FITTING:
            raise CheckpointError(
                f"ckpt_path='last': there is no checkpoint in {self.dirpath}. Give the --run_dir of a run that has "
                "some, or leave ckpt_path out to look at the model as training would begin with it."
            )
        rank_zero_warn(
            f"ckpt_path='last': there is no checkpoint in {self.dirpath} yet, so training starts anew."
        )
        return set()

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what is on disk is the state; see `on_save_checkpoint`."""
        return {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record the run's position, its number of processes and the running means of the epoch, of each process."""
        checkpoint[_KEY] = {
            "iteration": iterations_done(trainer),
            "within": not pl_module.automatic_optimization and is_within_iteration(trainer),
            "world_size": trainer.world_size,
            "epoch_means": gather_objects(epoch_means(trainer)),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check the number of processes and take up the running means."""
        ours = checkpoint.get(_KEY)
        if trainer.state.fn != TrainerFn.FITTING or ours is None:
            return
        if ours["within"]:
            raise CheckpointError(
                f"The checkpoint {trainer.ckpt_path} was written in the midst of iteration {ours['iteration']}, by "
                "something else than IterationCheckpoint: its policy is updated in part and its rollout lost. Give "
                "--ckpt_path last, or another checkpoint."
            )
        if ours["world_size"] != trainer.world_size:
            raise CheckpointError(
                f"The checkpoint {trainer.ckpt_path} was written by {ours['world_size']} processes and this run has "
                f"{trainer.world_size}: batches would be other ones than those still to come. Start "
                f"{ours['world_size']} processes (trainer.devices, trainer.num_nodes), or export the model and start a "
                "new run from it."
            )
        self._means_before = ours["epoch_means"][trainer.global_rank]
        rank_zero_info(f"Going on after iteration {ours['iteration']}.")
