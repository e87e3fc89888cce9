"""What a run was and how it ended, as one small file: for reports, and for who finds the directory in a year."""

import json
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lit_rlhf.callbacks.records import plain_json
from lit_rlhf.files import write_text
from lit_rlhf.internals.lightning import callbacks_of, is_dry_run, iterations_done

RUN_RECORD = "run.json"
"""Name of the file in a run's directory."""

_PACKAGES = (
    "lit-rlhf", "torch", "lightning", "transformers", "peft", "bitsandbytes", "datasets", "vllm",
)  # fmt: skip


class RunRecord(Callback):
    """Writes `run.json`: how the run was started, on what, with how many rows, what befell it, and how it ended.

    The file has `module`, `starts` and `rows`. Each start (the first and each resume) has `command`, `began`, `ended`,
    `state`, `reason`, `iterations`, `seconds`, `versions`, `device`, `processes`, `resumed_from` and `events`. The
    state is `running` until the end, then `finished`, `interrupted` (a signal or Ctrl-C) or `failed`; one that stays at
    `running` was killed. Events are what guards said and did. `lit-rlhf fit` adds this
    callback where the run has a directory of its own.

    Args:
        command: The command line that started it. Empty: not from a command line.
    """

    def __init__(self, command: str = "") -> None:
        self.command = command
        self.path: Path | None = None
        self.record: dict[str, Any] = {}
        self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the beginning; of a resumed run, behind its earlier ones."""
        if not trainer.is_global_zero or is_dry_run(trainer):
            return
        self.path = Path(trainer.default_root_dir) / RUN_RECORD
        resumed = trainer.ckpt_path
        earlier = read_starts(self.path) if resumed else []
        self._began = time.monotonic()
        device = pl_module.device
        cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
        here = f"{device.type}, {cores}, {platform.machine()}"
        start: dict[str, Any] = {
            "command": self.command,
            "began": _now(),
            "ended": None,
            "state": "running",
            "reason": None,
            "iterations": iterations_done(trainer),
            "seconds": 0.0,
            "versions": _versions(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else here,
            "processes": trainer.world_size,
            "resumed_from": None if resumed is None else str(resumed),
            "events": [],
        }
        rows = getattr(getattr(trainer, "datamodule", None), "reports", {})
        self.record = {
            "module": type(pl_module).__name__,
            "rows": {name: _rows(report) for name, report in rows.items()},
            "starts": [*earlier, start],
        }
        self._write()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the end; `trainer.interrupted` is a Ctrl-C."""
        self._end(trainer, "interrupted" if trainer.interrupted else "finished", None)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write what ended it."""
        stopped = isinstance(exception, KeyboardInterrupt | SystemExit)
        said = f"{type(exception).__name__}: {exception}".removesuffix(": ")
        self._end(trainer, "interrupted" if stopped else "failed", said)

    def note(self, iteration: int, text: str) -> None:
        """Add an event."""
        if self.path is not None:
            self.record["starts"][-1]["events"].append({"iteration": iteration, "text": text})
            self._write()

    def _end(self, trainer: Trainer, state: str, reason: str | None) -> None:
        if self.path is None or self.record["starts"][-1]["state"] == "failed":
            return
        self.record["starts"][-1] |= {
            "ended": _now(),
            "state": state,
            "reason": reason,
            "iterations": iterations_done(trainer),
            "seconds": time.monotonic() - self._began,
        }
        self._write()

    def _write(self) -> None:
        assert self.path is not None
        text = json.dumps(plain_json(self.record), indent=2, ensure_ascii=False, allow_nan=False)
        write_text(self.path, text + "\n", "The record of the run")


def tell(trainer: Trainer, text: str) -> None:
    """Warn, and keep what was said in the run's record."""
    rank_zero_warn(text)
    for callback in callbacks_of(trainer):
        if isinstance(callback, RunRecord):
            callback.note(iterations_done(trainer), text)


def read_starts(path: Path) -> list[dict[str, Any]]:
    """The starts that a record holds; none where it isn't there or can't be read."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return starts if isinstance(starts, list) else []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _rows(report: Any) -> dict[str, Any]:
    return {
        "source": report.source,
        "unit": report.unit,
        "used": report.records,
        "left_out": report.counts,
    }
