"""How many earlier positions a decoder's layers see, as its config says it."""

from transformers import PretrainedConfig

_SLIDING = "sliding_window"
_NAMES = ("window", "window_size", "attention_chunk_size", "local_attention")
"""How the names of windows end."""


def windows_by_layer(config: PretrainedConfig) -> list[int | None]:
    """Of each layer in order, by the names that transformers makes masks by: positions up to one's own; None: all."""
    sliding = getattr(config, _SLIDING, None) or None
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return [sliding if kind == "sliding_attention" else None for kind in kinds]
    in_use = getattr(config, "use_sliding_window", True)
    return [sliding if in_use else None] * getattr(config, "num_hidden_layers", 1)


def known_window(config: PretrainedConfig) -> int | None:
    """The longest row that no window of `windows_by_layer` cuts; None where there is none."""
    return min((window for window in windows_by_layer(config) if window), default=None)


def unknown_window(config: PretrainedConfig) -> int | None:
    """The smallest size that a config calls a window and no rule here gives to layers; None where there is none."""
    kinds = getattr(config, "layer_types", None)
    known = {_SLIDING}
    if kinds and "chunked_attention" not in kinds:
        known.add("attention_chunk_size")
    found = [
        value
        for name, value in vars(config).items()
        if name.endswith(_NAMES) and name not in known
        # Not the bools among the numbers.
        if type(value) is int and value > 0
    ]
    return min(found, default=None)


def window_of(config: PretrainedConfig) -> int | None:
    """The longest row that no layer's window cuts, known or not; None if there is no window."""
    windows = known_window(config), unknown_window(config)
    return min((size for size in windows if size), default=None)
