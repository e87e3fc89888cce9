"""What a run began with and what it came to, in a screen of plain lines."""

import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich import get_console

from lit_rlhf.callbacks.export import ExportModel
from lit_rlhf.callbacks.iteration_checkpoint import IterationCheckpoint
from lit_rlhf.callbacks.metrics_file import MetricsFile
from lit_rlhf.callbacks.records import RecordingCallback
from lit_rlhf.internals.lightning import callbacks_of, current_metrics, is_dry_run, iterations_done
from lit_rlhf.modules import PolicyModule, PreferenceModule, RewardModelModule, SupervisedModule

_RISES = ("accuracy", "scores", "reward", "margin")
_FALLS = ("loss", "perplexity", "calibration_error")


@dataclass
class Best:
    """The best value of a validation metric so far, and after which iteration it was reached."""

    value: float
    iteration: int


class RunSummary(Callback):
    """Says what is trained when a run begins, and what came of it when it has ended well.

    The end names the metrics that the progress bar shows and the best of those of validation, the rows that were used
    and left out by reason, where checkpoints, samples, metrics and export are, and a command to go on with. The
    command line has it in every `fit`. Rank 0 alone prints; a run that fails or is interrupted, and a `fast_dev_run`,
    print no end. The best values are kept in checkpoints, so a resumed run speaks of all of it.
    """

    def __init__(self) -> None:
        self.best: dict[str, Best] = {}
        self._began = 0.0
        self._ended_well = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the time: a run with nothing left to do has no start of training."""
        self._began = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is trained."""
        parameters = list(pl_module.parameters())
        total = sum(each.numel() for each in parameters)
        trained = sum(each.numel() for each in parameters if each.requires_grad)
        name = type(pl_module).__name__
        _print(trainer, f"{name}: {_count(total)} parameters, {_count(trained)} of them trained")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the best of each metric whose name says which way is better."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        for name, value in current_metrics(trainer).items():  # on all ranks: it may reduce
            what = name.removeprefix("val/").rpartition("/")[2]
            sign = ((what in _RISES) - (what in _FALLS)) * name.startswith("val/")
            before = self.best.get(name)
            if sign and (before is None or sign * value > sign * before.value):
                self.best[name] = Best(value, iterations_done(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that the run ended well."""
        self._ended_well = not is_dry_run(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the end, when all is written and the bar is gone."""
        if not self._ended_well:
            return
        self._ended_well = False
        took = time.monotonic() - self._began
        rows = [*self._metrics(trainer), *_data(trainer), *_places(trainer)]
        if following := _next(trainer, pl_module):
            rows.append(("next", following))
        width = max((len(name) for name, _ in rows), default=0)
        done = iterations_done(trainer)
        lines = [
            f"Done after {done} iteration{'s' * (done != 1)}; this start took {duration(took)}."
        ]
        lines += [f"  {name:<{width}}  {text}" for name, text in rows]
        _print(trainer, "\n".join(lines))

    def state_dict(self) -> dict[str, Any]:
        """The best values."""
        return {"best": {name: asdict(best) for name, best in self.best.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self.best = {name: Best(**best) for name, best in state_dict["best"].items()}

    def _metrics(self, trainer: Trainer) -> Iterator[tuple[str, str]]:
        shown = {name: float(value) for name, value in trainer.progress_bar_metrics.items()}
        measured = trainer.callback_metrics
        shown |= {name: float(measured[name]) for name in self.best if name in measured}
        shown.pop("v_num", None)
        # A resumed run may end before it validates: its best stands alone.
        for name in shown | self.best:
            texts = [f"{shown[name]:.4g}"] if name in shown else []
            best = self.best.get(name)
            if best is not None and f"{best.value:.4g}" not in texts:
                texts.append(f"at best {best.value:.4g} after iteration {best.iteration}")
            yield name, ", ".join(texts)
        if skipped := int(measured.get("train/skipped_steps", 0)):
            said = f"{skipped}: their gradients were not finite, and changed nothing"
            yield "skipped steps", said


def _data(trainer: Trainer) -> Iterator[tuple[str, str]]:
    data = getattr(trainer, "datamodule", None)
    for name, report in getattr(data, "reports", {}).items():
        yield f"{name} rows", report.brief()
    sizes = {name: len(rows) for name, rows in getattr(data, "rows", {}).items()}
    if getattr(data, "val_fraction", 0) > 0 and {"train", "val"} <= sizes.keys():
        yield "split", f"{sizes['train']} to train on, {sizes['val']} held out"


def _places(trainer: Trainer) -> Iterator[tuple[str, str]]:
    for each in callbacks_of(trainer):
        if isinstance(each, RecordingCallback) and each.lines is not None and each.lines.size:
            yield each.lines.path.stem, str(each.lines.path)
            if isinstance(each, MetricsFile):
                yield "report", f"lit-rlhf report {shlex.quote(str(each.lines.path.parent))}"
        elif isinstance(each, IterationCheckpoint) and (newest := each.newest(trainer)):
            yield "checkpoint", str(newest)
    for logger in trainer.loggers:
        if place := getattr(logger, "log_dir", None) or logger.save_dir:
            yield "log", str(place)
    if export := _export(trainer):
        yield "export", str(export)


def _next(trainer: Trainer, module: LightningModule) -> str:
    """A command to go on with; none for modules that aren't the library's."""
    export, newest = _export(trainer), None
    for each in callbacks_of(trainer):
        newest = each.newest(trainer) if isinstance(each, IterationCheckpoint) else newest
    if export is None and newest is None:
        return ""
    model = shlex.quote(str(export or newest))
    if isinstance(module, RewardModelModule):
        return f"lit-rlhf ppo --model MODEL --data PROMPTS --reward {model}"
    if isinstance(module, SupervisedModule) and export:
        return f"lit-rlhf dpo --model {model} --data PAIRS"
    if isinstance(module, SupervisedModule | PolicyModule | PreferenceModule):
        return f'lit-rlhf generate --model {model} --prompt "..."'
    return ""


def _export(trainer: Trainer) -> Path | None:
    exports = (each for each in callbacks_of(trainer) if isinstance(each, ExportModel))
    places = (each.directory(trainer) for each in exports if iterations_done(trainer))
    return next(places, None)


def _count(number: int) -> str:
    for size, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _print(trainer: Trainer, text: str) -> None:
    if trainer.is_global_zero:
        get_console().print(text, markup=False, highlight=False, soft_wrap=True)
