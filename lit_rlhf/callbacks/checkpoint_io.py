"""Checkpoint files that are whole or not there: written beside their place, synced, moved over in one step."""

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule, Trainer

from lit_rlhf.errors import CheckpointError
from lit_rlhf.files import whole_file
from lit_rlhf.internals.lightning import iterations_done
from lit_rlhf.internals.torch import tensors_in

# What torch raises for files that are cut off, overwritten, or of another kind.
_UNREADABLE = (
    RuntimeError, EOFError, OSError, LookupError, ValueError, pickle.UnpicklingError,
    zipfile.BadZipFile,
)  # fmt: skip
# What pickle raises for objects that can't be saved, or not be loaded with weights_only=True.
_NOT_PLAIN = (pickle.PickleError, AttributeError, TypeError)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint so that a kill, a power cut or a full disk leaves the last good file untouched.

    The bytes go to a temporary file in the same directory and are synced to disk, read back (structure and types, not
    the tensors) as `torch.load(weights_only=True)` will, and replace the old file in one step; then the directory is
    synced. Loads with `weights_only=True` unless told otherwise. Remote paths (`s3://`) are left to the base class.

    Use it as `Trainer(plugins=[AtomicCheckpointIO()])`; `IterationCheckpoint` installs it by itself.

    Raises:
        CheckpointError: The file can't be written or wouldn't load again (on saving), or is missing or torn (on
            loading).

    Example:
        >>> import tempfile
        >>> io, path = AtomicCheckpointIO(), Path(tempfile.mkdtemp()) / "a.ckpt"
        >>> io.save_checkpoint({"step": 3}, path)
        >>> io.load_checkpoint(path)
        {'step': 3}
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path`, whole or not at all."""
        if storage_options is not None or _is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        way_out = (
            "set IterationCheckpoint's dirpath to another disk, or a lower keep_last, "
            "and go on with --ckpt_path last"
        )
        needed = sum(tensor.nbytes for tensor in tensors_in(checkpoint))
        with whole_file(target, "The checkpoint", needed, way_out, CheckpointError) as temporary:
            try:
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                torch.load(temporary, map_location="cpu", weights_only=True, mmap=True)
            except _NOT_PLAIN as error:
                raise CheckpointError(
                    f"The checkpoint {target} would not load again with weights_only=True: {_reason(error)} State "
                    "(extra_state of the module, state_dict of callbacks and data, hyper-parameters) must be tensors "
                    "and plain numbers, strings, lists and dicts."
                ) from error

    def load_checkpoint(
        self,
        path: _PATH,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; with `weights_only=None` nothing but tensors and plain values is unpickled."""
        if not _is_remote(path) and not Path(path).exists():
            raise CheckpointError(
                f"There is no checkpoint at {path}. Give --ckpt_path an existing file, or 'last'."
            )
        plain = weights_only is None or weights_only
        try:
            return super().load_checkpoint(path, map_location, plain)
        except _UNREADABLE as error:
            raise CheckpointError(
                f"The checkpoint {path} can't be read: {_reason(error)} It is torn, or was not written by this "
                "library. With IterationCheckpoint among trainer.callbacks, --ckpt_path last takes the newest one that "
                "is whole."
            ) from error


def install_atomic_io(trainer: Trainer) -> None:
    """Let a trainer read and write by `AtomicCheckpointIO`, unless another IO was chosen."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def checkpoint_problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None where it loads completely.

    Files are checked to the last byte (the archive's checksums, which `torch.load` doesn't look at), and unpickled
    without their tensors.

    Example:
        >>> checkpoint_problem(Path("/nowhere/iteration-00000001.ckpt"))
        'it does not exist'
    """
    if not path.exists():
        return "it does not exist"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            return f"the checksum of its part {damaged} is wrong"
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        return _reason(error)
    return None


def refuse_non_finite(trainer: Trainer, module: LightningModule) -> None:
    """Stop a run whose trained weights hold NaN or infinity: they never become numbers again. All ranks must ask.

    Raises:
        CheckpointError: They do, on any rank; nothing was written.
    """
    wrong = [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and not bool(torch.isfinite(parameter.detach()).all())
    ]
    if trainer.strategy.reduce_boolean_decision(bool(wrong), all=False):
        raise CheckpointError(
            f"{len(wrong)} trained weights ({', '.join(wrong[:2])}, ...) are NaN or infinite after iteration "
            f"{iterations_done(trainer)}: they are not saved and not exported, and the run ends. "
            "The last checkpoint is "
            "from before: go on from it with --ckpt_path last and a lower learning rate, or mend the data."
        )


def _is_remote(path: _PATH) -> bool:
    return "://" in str(path)


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    if (forbidden := re.search(r"Unsupported global: GLOBAL (\S+)", text)) is not None:
        return f"it holds an object of type {forbidden[1]}."
    return (text.splitlines()[0] if text else type(error).__name__).rstrip(".") + "."
