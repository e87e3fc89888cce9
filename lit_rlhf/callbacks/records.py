"""Files of JSON lines that belong to a run: appended to, and cut back to where a checkpoint was written."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_rlhf.files import free_name, sync, writing
from lit_rlhf.internals.lightning import is_dry_run


def plain_json(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON has no words for; named tuples and dataclasses by name.

    Example:
        >>> plain_json({"a": [1.5, float("nan")], "b": float("inf")})
        {'a': [1.5, None], 'b': None}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return value


def json_line(row: Mapping[str, Any]) -> str:
    r"""A row as a line of JSON.

    Example:
        >>> json_line({"a": float("nan")})
        '{"a": null}\n'
    """
    return json.dumps(plain_json(row), ensure_ascii=False, allow_nan=False) + "\n"


class JsonLines:
    r"""A file with one JSON object per line; every line is handed to the system at once, so a kill loses none.

    Args:
        path: The file; its directory is made when the first line is written.

    Example:
        >>> import tempfile
        >>> lines = JsonLines(Path(tempfile.mkdtemp()) / "run.jsonl")
        >>> lines.append([{"a": 1}])
        >>> size = lines.sync()
        >>> lines.append([{"a": 2}])
        >>> lines.cut(size)
        >>> lines.path.read_text()
        '{"a": 1}\n'
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows at the end."""
        text = "".join(map(json_line, rows))
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(text.encode())

    def sync(self) -> int:
        """Bring what was written to disk; returns the size in bytes."""
        if self.path.exists():
            with writing(self.path):
                sync(self.path)
        return self.size

    def cut(self, size: int) -> None:
        """Forget what was written after the file had `size` bytes."""
        if self.size > size:
            os.truncate(self.path, size)
        elif self.size < size:
            rank_zero_warn(
                f"{self.path} has {self.size} bytes, and had {size} at the checkpoint: its earlier lines are lost."
            )

    def set_aside(self) -> None:
        """Rename the file of another run out of the way, under the first free name `<stem>-<n><suffix>`."""
        if not self.path.exists():
            return
        other = free_name(self.path)
        self.path.rename(other)
        rank_zero_info(f"{self.path} is of an earlier run and is now {other.name}.")

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size if self.path.exists() else 0


class RecordingCallback(Callback):
    """Base of callbacks that write a `JsonLines` file, on rank 0; a resumed run goes on where its checkpoint was.

    Lines of iterations that a resumed run will do again are cut off, so that the finished file is that of an
    uninterrupted run. A file that is there when a run starts anew is renamed, never overwritten.

    Args:
        dirpath: Directory of the file; fixed, if runs are to be resumed. Default: the trainer's
            `default_root_dir` (on the command line, `--run_dir`).
        filename: Name of the file.
    """

    def __init__(self, dirpath: str | None, filename: str) -> None:
        self.dirpath = dirpath
        self.filename = filename
        self.lines: JsonLines | None = None
        self._size_at_checkpoint: int | None = None
        self._starts_anew = False

    @property
    def state_key(self) -> str:
        """One per file name."""
        return f"{type(self).__qualname__}[{self.filename}]"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out where the file is."""
        path = Path(self.dirpath or trainer.default_root_dir) / self.filename
        self.lines = JsonLines(path) if stage == "fit" and not is_dry_run(trainer) else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut the file back to the checkpoint."""
        size, self._size_at_checkpoint = self._size_at_checkpoint, None
        self._starts_anew = size is None
        if self.lines is not None and size is not None and trainer.is_global_zero:
            self.lines.cut(size)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set another run's file aside, now that no callback's `on_train_start` has refused this run."""
        anew, self._starts_anew = self._starts_anew, False
        if self.lines is not None and anew and trainer.is_global_zero:
            self.lines.set_aside()

    def state_dict(self) -> dict[str, Any]:
        """The file's size; its lines are on disk before a checkpoint says so."""
        return {} if self.lines is None else {"size": self.lines.sync()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where to cut."""
        self._size_at_checkpoint = state_dict["size"]

    def write(self, trainer: Trainer, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, on rank 0."""
        if self.lines is not None and trainer.is_global_zero:
            self.lines.append(rows)
