"""SIGTERM, and SLURM's word that time is nearly up, end a run between iterations, with everything saved."""

import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_rlhf.callbacks.iteration_checkpoint import IterationCheckpoint
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.lightning import callbacks_of, is_accumulating, requeue_signal

EXIT_CODE = 128 + signal.SIGTERM
"""143, what supervisors (SLURM, Kubernetes, systemd) expect of a process that ended because of SIGTERM."""


class Preemption(Callback):
    """On SIGTERM, finishes the iteration, saves, and ends the process with exit code 143.

    The signal only sets a flag. At the end of each iteration all processes agree whether any of them has it; then
    `IterationCheckpoint` saves at its next boundary (after a validation that is due, and after accumulated gradients
    are applied), and training ends by `SystemExit(143)`: loggers are closed, nothing of the iteration is lost, and
    `--ckpt_path last` goes on from there. With Lightning's own `ModelCheckpoint` instead (which DeepSpeed needs), it
    writes `last.ckpt` in that callback's directory. Without this callback Lightning ends the run there too, and saves
    nothing.

    On SLURM it takes over Lightning's requeueing too, which would save within the iteration, where no policy can go on:
    on SIGUSR1 (`#SBATCH --signal=SIGUSR1@300`) the run ends in the same way, and before that the first process has the
    job queued again by `scontrol requeue`. Lightning's `SLURMEnvironment(auto_requeue=False)` switches that off.

    The iteration must end within the time that the cluster grants between SIGTERM and SIGKILL (torchrun: 30 s;
    Kubernetes: `terminationGracePeriodSeconds`; SLURM: `--signal=TERM@300`). Where it doesn't, the kill loses that
    iteration and no more.

    Raises:
        ConfigurationError: There is no checkpoint callback among `trainer.callbacks`.
    """

    def __init__(self) -> None:
        self.received = False
        self.requeues = False
        self._agreed = False
        self._lightnings: ModelCheckpoint | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look for the checkpoint callback."""
        if stage != "fit":
            return
        ours = [c for c in callbacks_of(trainer) if isinstance(c, IterationCheckpoint)]
        others = [c for c in callbacks_of(trainer) if isinstance(c, ModelCheckpoint)]
        if not others:
            raise ConfigurationError(
                "Preemption saves through IterationCheckpoint, or where Lightning's ModelCheckpoint does: add one to "
                "trainer.callbacks."
            )
        self.received = self.requeues = self._agreed = False
        self._lightnings = None if ours else others[0]
        if ours and self._stop not in ours[0].listeners:
            ours[0].listeners.append(self._stop)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which puts the former handlers back when training is over."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._receive)
            if (requeue := requeue_signal(trainer)) is not None:
                signal.signal(requeue, self._receive)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree with the other processes, and ask for a checkpoint."""
        if not self._agreed and trainer.strategy.reduce_boolean_decision(self.received, all=False):
            self._agreed = True
            self.requeues = trainer.strategy.reduce_boolean_decision(self.requeues, all=False)
            for callback in callbacks_of(trainer):
                if isinstance(callback, IterationCheckpoint):
                    callback.request()
        if self._agreed and self._lightnings is not None and not is_accumulating(trainer):
            path = Path(str(self._lightnings.dirpath)) / "last.ckpt"
            trainer.save_checkpoint(path)
            self._stop(trainer, path)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = True
        self.requeues |= signum != signal.SIGTERM

    def _stop(self, trainer: Trainer, path: Path) -> None:
        if not self._agreed:
            return
        if self.requeues:
            _queue_again()
        word = "SLURM's signal" if self.requeues else "SIGTERM"
        rank_zero_warn(
            f"{word}: saved {path} and ending with exit code {EXIT_CODE}. --ckpt_path last goes on from there."
        )
        raise SIGTERMException(EXIT_CODE)


@rank_zero_only
def _queue_again() -> None:
    """Have SLURM start this job again; it ends it, too."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    command = [shutil.which("scontrol") or "scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        said = str(error)
    else:
        said = done.stderr.strip() if done.returncode else ""
    if said:
        rank_zero_warn(
            f"SLURM didn't queue the job again ({said}). Do so by hand: scontrol requeue {job}"
        )
