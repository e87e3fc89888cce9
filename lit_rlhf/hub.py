"""Loading with transformers from directories and the hub: never a repository's code without leave, and clear errors."""

import shlex
from collections.abc import Callable
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TypeVar

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from lit_rlhf.errors import ConfigurationError, is_out_of_memory

T = TypeVar("T")

_MOST_NAMES = 2000
"""Of a directory that are looked through for one that was meant: more would take seconds."""

# What from_pretrained raises for files that are missing, torn, of another kind or made for other sizes.
_LOAD_ERRORS = (
    OSError,
    ValueError,
    ImportError,
    KeyError,
    AttributeError,
    TypeError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)


def from_hub(load: Callable[[], T], name: str, what: str) -> T:
    """Call a `from_pretrained`, turning its errors into ones that name the option and the way out.

    Args:
        load: Loads, with `trust_remote_code` given as a bool: left out, transformers asks on the terminal.
        name: Directory or hub id that it loads.
        what: "model" or "tokenizer".

    Raises:
        ConfigurationError: It can't be loaded.
    """
    require_directory(name, what)
    try:
        return load()
    except _LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            raise ConfigurationError(
                f"The {what} {name!r} comes with code of its own, which runs only with trust_remote_code: true. Read "
                "that code first; without it, use files that transformers loads by itself."
            ) from error
        if "scaled_dot_product_attention" in reason:
            raise ConfigurationError(
                f"The model {name!r} has no attention by scaled_dot_product_attention in transformers. Set "
                "backbone.attention: eager."
            ) from error
        raise ConfigurationError(_hint(name, what, reason[:400])) from error


def require_directory(name: str, what: str) -> None:
    """Refuse a path that doesn't exist before transformers takes it for a hub id.

    Raises:
        ConfigurationError: `name` reads as a path and there is no such directory.
    """
    path = Path(name)
    reads_as_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if reads_as_path and not path.is_dir():
        raise ConfigurationError(
            f"The {what} directory {name!r} doesn't exist (looked in {Path.cwd()}).{near_path(name)} Give the path of "
            "a directory that `save_pretrained` or `lit-rlhf export` wrote, or a hub id like 'org/name'."
        )


def near_path(path: str | Path) -> str:
    """` Did you mean X?` where something beside a path that isn't there has nearly its name; else nothing."""
    place = Path(path).expanduser()
    try:
        found = [] if place.exists() else [*islice(place.parent.iterdir(), _MOST_NAMES)]
    except OSError:
        return ""
    names = [each.name for each in found]
    close = get_close_matches(place.name, names, n=1, cutoff=0.75)
    return f" Did you mean {Path(path).parent / close[0]}?" if close else ""


def _hint(name: str, what: str, reason: str) -> str:
    path = Path(name)
    if path.is_dir():
        wanted = "config.json" if what == "model" else "tokenizer.json"
        files = sorted(file.name for file in path.iterdir())[:12]
        advice = f"The directory holds {files}."
        if (path / "export" / wanted).is_file():
            return f"{name} is the directory of a run and holds no {what} itself: give its export, {path / 'export'}."
        if checkpoints := sorted((path / "checkpoints").glob("*.ckpt")):
            words = ["lit-rlhf", "export", "--ckpt_path", name, "--output", str(path / "export")]
            return (
                f"{name} is the directory of a run that made no export: give its checkpoint {checkpoints[-1]}, or have "
                f"it exported: {shlex.join(words)}"
            )
        if wanted not in files:
            advice += f" {wanted} is missing: was the {what} saved there?"
    else:
        advice = (
            f"No such directory (looked in {Path.cwd()}).{near_path(name)} It was taken for a hub id, which needs the "
            f"network, or the {what} in the local cache."
        )
    return f"Can't load the {what} {name!r}. {advice} The cause: {reason}"
