"""Loading tokenizers, and which of their ids end a text."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lit_rlhf.errors import ConfigurationError

T = TypeVar("T")

# What from_pretrained raises for files that are missing, torn, of another kind or made for other sizes.
_LOAD_ERRORS = (
    OSError,
    ValueError,
    ImportError,
    KeyError,
    AttributeError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer, padding on the right.

    Args:
        name: Directory or hub id.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with the tokenizer.

    Raises:
        ConfigurationError: There is no such directory, or it holds no tokenizer.
    """
    tokenizer: PreTrainedTokenizerBase = from_hub(
        lambda: AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code, padding_side="right"
        ),
        name,
        "tokenizer",
    )
    return tokenizer


def from_hub(load: Callable[[], T], name: str, what: str) -> T:
    """Call a `from_pretrained`, turning its errors into ones that name the option and the way out.

    Args:
        load: Loads.
        name: Directory or hub id that it loads.
        what: "model" or "tokenizer".
    """
    require_directory(name, what)
    try:
        return load()
    except torch.OutOfMemoryError:
        raise
    except _LOAD_ERRORS as error:
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            reason = (
                "it comes with code of its own, which runs with trust_remote_code=true alone. "
                + reason
            )
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
            f"The {what} directory {name!r} doesn't exist (looked in {Path.cwd()}). Give the path of a directory that "
            "`save_pretrained` or `lit-rlhf export` wrote, or a hub id like 'org/name'."
        )


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end a text, as generation config, config and tokenizer name them."""
    found: set[int] = set()
    for source in (
        getattr(model, "generation_config", None),
        model.config.get_text_config(),
        tokenizer,
    ):
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    return tuple(sorted(found))


def _hint(name: str, what: str, reason: str) -> str:
    path = Path(name)
    if path.is_dir():
        wanted = "config.json" if what == "model" else "tokenizer.json"
        files = sorted(file.name for file in path.iterdir())[:12]
        advice = f"The directory holds {files}."
        if wanted not in files:
            advice += f" {wanted} is missing: was the {what} saved there?"
    else:
        advice = "No such directory; taken for a hub id, which needs the network, or the model in the local cache."
    return f"Can't load the {what} {name!r}. {advice} The cause: {reason}"
