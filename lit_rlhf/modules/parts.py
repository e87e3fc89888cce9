"""What a checkpoint holds of a module: options, parts that it can only name, weights; and whether it fits one."""

import inspect
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_rlhf.distributed import by_first_rank
from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.options import is_plain, shown

CHECKPOINT_KEY = "lit_rlhf"
CHECKPOINT_VERSION = 2
_WAYS = {
    "ModelSpec": "Of a directory or a hub id it is ModelSpec(name=...).",
    **dict.fromkeys(
        ("PreferenceLoss", "RewardLoss"),
        "Losses are classes of lit_rlhf.objectives; one of your own is a subclass of one of them.",
    ),
    "Reward": "Of a function it is FunctionReward(function), of a reward model "
    "ModelReward(path), of several WeightedSum(rewards).",
}


def take_parts(hparams: MutableMapping[str, Any]) -> dict[str, str]:
    """Leave nothing in hyper-parameters but what a checkpoint that loads with `weights_only=True` can hold.

    Under LightningCLI they are the parsed configuration and stay. From Python they are live objects: dataclasses become
    dicts, for loggers, and other objects go.

    Args:
        hparams: As Lightning keeps them.

    Returns:
        Each of those by name: its class and its plain options.
    """
    parts = {}
    for name, value in list(hparams.items()):
        if is_dataclass(value) and not isinstance(value, type):
            parts[name] = describe(value)
            hparams[name] = asdict(value)
        if isinstance(value, nn.Module) or not is_plain(hparams[name]):
            parts[name] = describe(value)
            del hparams[name]
    return parts


def keep_readable(checkpoint: MutableMapping[str, Any]) -> None:
    """Keep out of a checkpoint what `weights_only=True`, as which all are read, would refuse when it is needed.

    These are live options of a DataModule of one's own, and numbers of numpy, which an optimizer and its schedule have
    where they were given some: those become plain numbers.
    """
    options = checkpoint.get("datamodule_hyper_parameters", {})
    for name in [name for name, value in options.items() if not is_plain(value)]:
        del options[name]
    _plain_numbers(checkpoint)


def _plain_numbers(value: Any) -> Any:
    """A value whose numbers of numpy are plain ones; lists and dictionaries are changed in place."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict | list):
        places = list(value) if isinstance(value, dict) else range(len(value))
        for place in places:
            value[place] = _plain_numbers(value[place])
    return tuple(map(_plain_numbers, value)) if type(value) is tuple else value


def require_parts(checkpoint: object, module: str, given: Iterable[str]) -> None:
    """Refuse to build a module from a checkpoint file without the parts that it only names.

    Args:
        checkpoint: What `load_from_checkpoint` was given; only files are looked into.
        module: Class of the module.
        given: Names of the arguments that were passed.

    Raises:
        CheckpointError: It is of another class, or no module of this library wrote it.
        ConfigurationError: Names what to pass.
    """
    if not isinstance(checkpoint, str | Path) or not Path(checkpoint).is_file():
        return
    record = record_of(torch.load(checkpoint, map_location="cpu", weights_only=True), module)
    parts: dict[str, str] = record.get("parts", {})
    missing = [f"{name}={part}" for name, part in parts.items() if name not in set(given)]
    if missing:
        raise ConfigurationError(
            f"{checkpoint} is of a module that was built in Python, and a checkpoint can't hold its parts. Pass them "
            f"to load_from_checkpoint, with the options they had: {', '.join(missing)}."
        )


def export_once(module: LightningModule, write: Callable[[], None]) -> None:
    """Export from the first process; the others of a script wait until it has.

    Args:
        module: What is exported.
        write: Writes it.

    Raises:
        ConfigurationError: Its weights are sharded over processes.
    """
    if module.device_mesh is not None:
        raise ConfigurationError(
            f"The weights of {type(module).__name__} are sharded over processes, and an export is written by one. Run "
            "`lit-rlhf export` on a checkpoint afterwards."
        )
    by_first_rank("export", write)


def arguments_of(module: type, given: Iterable[str]) -> set[str]:
    """Names of the arguments of a module: those that its class lists, and what else was given by name.

    What the class itself hands on to its base isn't among them, and can't be handed to it.

    Args:
        module: The class.
        given: Names of the keyword arguments of the call that built it.
    """
    own = inspect.signature(module.__init__).parameters.values()  # type: ignore[misc]
    listed = [p.name for p in own if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)][1:]
    return {*listed, *given}


def check_kinds(module: type, places: Sequence[Any], names: Mapping[str, Any]) -> None:
    """Refuse parts of another kind than a module's constructors say: most are looked at only when work has begun.

    Args:
        module: The class.
        places: What it was given by place.
        names: What it was given by name.

    Raises:
        ConfigurationError: Names the argument, the kind and the way to it.
    """
    hints: dict[str, Any] = {}
    for each in reversed(module.__mro__):
        if "__init__" in vars(each):
            with suppress(NameError):  # a user's class may import its types for checkers alone
                hints |= get_type_hints(vars(each)["__init__"])
    own = [*inspect.signature(module.__init__).parameters][1:]  # type: ignore[misc]
    for name, value in {**dict(zip(own, places, strict=False)), **names}.items():
        hint = hints.get(name)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        ours = [kind for kind in kinds if getattr(kind, "__module__", "").startswith("lit_rlhf.")]
        told = ours and all(isinstance(kind, type) for kind in kinds)
        if told and not isinstance(value, kinds):
            kind, way = ours[0].__name__, _WAYS.get(ours[0].__name__, "")
            article = "an" if kind[0] in "AEIOU" else "a"
            if isinstance(value, type) and issubclass(value, ours[0]):
                way = f"This is the class; give one of it: {value.__name__}(...)."
            raise ConfigurationError(
                f"{module.__name__}({name}={shown(value)}): {name} must be {article} {kind}. {way}".rstrip()
            )
        if isinstance(value, nn.Module) and "_modules" not in vars(value):
            kind = type(value).__name__
            raise ConfigurationError(
                f"{module.__name__}({name}=...): {kind}.__init__ must begin with super().__init__(), as that of every "
                "torch.nn.Module."
            )


def describe(value: Any) -> str:
    """A part as a call that would make it, with what of its options is plain and no default."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(describe, value))}]"
    if is_plain(value):
        return repr(value)
    if hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    options = {
        name: option
        for name, option in getattr(value, "__dict__", {}).items()
        if not name.startswith("_")
        and name != "training"
        and (is_plain(option) or is_dataclass(option))
        and option is not getattr(type(value), name, ...)  # a default says nothing
    }
    said = ", ".join(f"{name}={describe(option)}" for name, option in options.items())
    return f"{type(value).__name__}({said})"


def shapes_of(weights: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(weight.shape) for name, weight in weights}


def record_of(checkpoint: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """What a module of the same class kept.

    Raises:
        CheckpointError: It is of another class or layout, or no module of this library wrote it.
    """
    ours: Mapping[str, Any] | None = checkpoint.get(CHECKPOINT_KEY)
    if ours is None:
        raise CheckpointError(
            "This checkpoint was not written by lit_rlhf: it has no record of the module's class and state."
        )
    if ours.get("version") != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"The checkpoint has version {ours.get('version', 1)} of its layout, and this release reads version "
            f"{CHECKPOINT_VERSION}: go on with the release that wrote it, or start anew from an export of it "
            "(`lit-rlhf export` there)."
        )
    if ours["class"] != module:
        raise CheckpointError(
            f"The checkpoint was written by {ours['class']}, the model is {module}. Give --ckpt_path a checkpoint of "
            f"a {module}, or set model.class_path to {ours['class']}."
        )
    return ours


def require_weights(
    found: Mapping[str, tuple[int, ...]],
    wanted: Iterable[str],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Refuse weights that aren't those that a model trains.

    Args:
        found: Shapes of those in the checkpoint.
        wanted: Names that the model needs.
        shapes: Of all its weights.

    Raises:
        CheckpointError: Some are missing, too many, or of another shape.
    """
    names = set(wanted)
    missing, unexpected = sorted(names - found.keys()), sorted(found.keys() - names)
    if missing or unexpected:
        raise CheckpointError(
            f"The checkpoint doesn't fit the model: {len(missing)} trainable parameters are missing (first: "
            f"{missing[:3]}), {len(unexpected)} are not of this model (first: {unexpected[:3]}). Were backbone, "
            "lora or value other when it was written?"
        )
    wrong = [name for name, shape in found.items() if tuple(shape) != shapes[name]]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"The checkpoint doesn't fit the model: {len(wrong)} parameters have another shape; {name} is "
            f"{tuple(found[name])} in the checkpoint and {shapes[name]} in the model. Was backbone.lora other when "
            "it was written? What stands in files and on the command line holds; the checkpoint's options don't."
        )
