"""What a run wrote for its optimizer and schedule, kept in checkpoints; on resuming, what is written now holds."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_rlhf.errors import CheckpointError
from lit_rlhf.modules.teacher_server import TeacherServer
from lit_rlhf.rewards import HTTPReward

_NOT_OPTIONS = {"params", "name", "initial_lr", "foreach", "fused", "capturable", "differentiable"}
_OF_RATES = {"base_lrs", "_last_lr"}  # of a schedule, told by the groups
_FIXED = ("optimizer", "parameters")  # what the optimizer's state hangs on


def written_options(optimizer: Optimizer, scheduler: LRScheduler | None) -> dict[str, Any]:
    """Plain options of a fresh optimizer and its schedule, by name: what can be told in a checkpoint."""
    options: dict[str, Any] = {"optimizer": type(optimizer).__name__}
    for group in optimizer.param_groups:
        own = {key: value for key, value in group.items() if key not in _NOT_OPTIONS}
        own["lr"] = group.get("initial_lr", group["lr"])  # a schedule has set the rate by now
        options |= _walk(own, str(group.get("name", "")))
        options[f"{group.get('name', '')}.parameters"] = len(group["params"])
    options["lr_scheduler"] = None if scheduler is None else type(scheduler).__name__
    if scheduler is not None:
        options |= _walk(scheduler.state_dict(), "lr_scheduler")
    return options


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, each with both values; empty where nothing does.

    Raises:
        CheckpointError: The optimizer's state is of another optimizer or of other groups of parameters.
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    said = [f"{name} was {before.get(name)}, is {now.get(name)}" for name in names]
    if any(name.rsplit(".", 1)[-1] in _FIXED for name in names):
        raise CheckpointError(
            f"The checkpoint's optimizer can't go on with these options: {'; '.join(said)}. Write what the checkpoint "
            "was written with, or start anew from an export of its weights."
        )
    return said


class Resumption:
    """The options of a run's optimizer and schedule, beside those of the checkpoint that it goes on from.

    Attributes:
        written: What is written now, as `written_options` tells it; empty before there is an optimizer.
    """

    def __init__(self) -> None:
        self.written: dict[str, Any] = {}
        self._restored: tuple[Mapping[str, Any], list[dict[str, Any]]] | None = None
        self._steps: int | None = None

    def check(self, before: Mapping[str, Any]) -> None:
        """Refuse a checkpoint's options, where both are there and its optimizer can't go on with what is written."""
        if self.written and before:
            changed_options(before, self.written)

    def restore(self, before: Mapping[str, Any], schedules: list[dict[str, Any]]) -> None:
        """Take what a checkpoint holds.

        Args:
            before: Options as they were.
            schedules: Lightning's states of the schedules, emptied where they must not be restored.
        """
        self._restored = before, schedules
        self.compare()

    def compare(self) -> None:
        """Say what has changed, once both are there: strategies differ in which comes first."""
        if self._restored is None or not self.written:
            return
        before, schedules = self._restored
        changes = changed_options(before, self.written) if before else []
        if not changes:
            self._restored = None
            return
        rank_zero_warn(
            f"Options changed since the checkpoint was written: {'; '.join(changes)}. What is written now holds, a "
            "schedule as if it had been so from the first step. To go on as before, write the former values."
        )
        self._steps = schedules[0]["last_epoch"] if schedules else None
        schedules.clear()  # else Lightning would restore it into another one

    def finish(
        self, trainer: Trainer, fresh: Callable[[], tuple[Optimizer, LRScheduler | None]]
    ) -> None:
        """Give what Lightning has restored the options that are written now, where they have changed.

        Args:
            trainer: With the restored optimizer.
            fresh: Makes another pair of optimizer and schedule.
        """
        if self._restored is None or not self.written:
            return
        self._restored = None
        configs = trainer.lr_scheduler_configs
        scheduler = configs[0].scheduler if configs else None
        steps = trainer.global_step if self._steps is None else self._steps
        apply_written(trainer.optimizers[0], scheduler, fresh(), steps)


def apply_written(
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    fresh: tuple[Optimizer, LRScheduler | None],
    steps: int,
) -> None:
    """Give a restored optimizer and its schedule the options of a fresh pair that is so many steps on."""
    new, schedule = fresh
    if schedule is not None:
        with warnings.catch_warnings():  # that no optimizer step came between
            warnings.simplefilter("ignore")
            for _ in range(steps):
                schedule.step()
    for group, wanted in zip(optimizer.param_groups, new.param_groups, strict=True):
        group.pop("initial_lr", None)
        group.update({key: value for key, value in wanted.items() if key != "params"})
    if scheduler is not None and schedule is not None:
        scheduler.load_state_dict(schedule.state_dict())


def served(module: nn.Module) -> dict[str, str | None]:
    """What the servers that a module asks say they answer by, by the part that asks them."""
    rewards = {n: p.weights for n, p in module.named_modules() if isinstance(p, HTTPReward)}
    teachers = {n: p.model_name for n, p in module.named_modules() if isinstance(p, TeacherServer)}
    return rewards | teachers


def refuse_other_servers(before: Mapping[str, str | None], now: Mapping[str, str | None]) -> None:
    """Refuse to train on by servers that answer by something else than those of a checkpoint; see `served`.

    Raises:
        CheckpointError: Names the part, and both.
    """
    other = [name for name in before.keys() & now.keys() if before[name] != now[name]]
    if other:
        said = "; ".join(f"of {name} {before[name]}, now {now[name]}" for name in sorted(other))
        raise CheckpointError(
            f"The run was trained by a server with other weights than those that it has now ({said}). Start the "
            "server with the former model and go on, or begin a new run from an export of this one's policy."
        )


def _walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in [key for key in value if key not in _OF_RATES]:
            yield from _walk(value[key], f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _walk(item, f"{name}[{index}]")
    elif isinstance(value, Tensor):
        yield from _walk(value.tolist(), name)
    elif value is None or isinstance(value, str | int | float | bool):
        yield name, value
