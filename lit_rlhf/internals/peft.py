"""Of peft, read from 0.21: which adapter of a layer is on.

The documented setters also flip `requires_grad`, which must stay as it was when a strategy wrapped the model and an
optimizer took its parameters.
"""

from typing import Any


def set_active(layer: Any, name: str | None) -> None:
    """Switch a layer of peft to an adapter, or to its base with None; a name that it lacks is the base too."""
    layer._disable_adapters = name is None
    if name is not None:
        layer._active_adapter = [name]


def active_of(layer: Any) -> str | None:
    """The adapter that changes a layer now; None where none is on, or one that leaves this layer out."""
    name: str = layer._active_adapter[0]
    return None if layer._disable_adapters or name not in layer.scaling else name
