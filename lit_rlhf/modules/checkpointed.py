"""What a module keeps of itself in a checkpoint, and whether a module can go on from what another kept."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from lit_rlhf.errors import CheckpointError

CHECKPOINT_KEY = "lit_rlhf"
CHECKPOINT_VERSION = 2


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
