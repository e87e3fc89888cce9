"""Loading with transformers from directories and the hub, and questions about tokenizers.

What is loaded runs no code of a repository without leave. Of tokenizers: how one is loaded, whether two agree, what
pads, what ends a text.
"""

import hashlib
import json
import logging
import shlex
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_rlhf.errors import ConfigurationError, is_out_of_memory
from lit_rlhf.files import near_path

T = TypeVar("T")
_log = logging.getLogger(__name__)

# What from_pretrained raises for files that are missing, torn, of another kind or made for other sizes.
_LOAD_ERRORS = (
    OSError, ValueError, ImportError, KeyError, AttributeError, TypeError, RuntimeError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip


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


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer, padding on the right.

    Args:
        name: Directory or hub id.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with the tokenizer. Off: such tokenizers are refused, nothing is asked.

    Raises:
        ConfigurationError: There is no such directory, it holds no tokenizer, or one with code of its own.
    """
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    load = partial(AutoTokenizer.from_pretrained, name, padding_side="right", **options)
    tokenizer: PreTrainedTokenizerBase = from_hub(load, name, "tokenizer")
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what decides the ids of a text: vocabulary, merges, normalisation, special tokens and chat template.

    Padding and truncation settings, which change as tokenizers are used, and where it was loaded from don't count.

    Returns:
        64 hexadecimal digits, equal before and after `save_pretrained`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        core: dict[str, object] = json.loads(backend.to_str())
        core.pop("truncation", None)
        core.pop("padding", None)
    else:  # a tokenizer in pure Python, as some hub models bring
        core = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [core, specials, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to fill padding with: the pad token's, else EOS, else 0. Masks go by length, so any id does."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that stand for no text: end of a turn, BOS, EOS and the like."""
    added = {int(index) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | {int(index) for index in tokenizer.all_special_ids})


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token with which the chat template ends an answer; None without a template or such a token.

    Example: `<|im_end|>` of a base model with a ChatML template, whose EOS is another token.
    """
    if not tokenizer.chat_template:
        return None
    answer = "The answer."
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": answer}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # noqa: BLE001 - a template may refuse such turns; it says so where it is used
        return None
    ids = tokenizer(text.rpartition(answer)[2], add_special_tokens=False)["input_ids"]
    special = special_token_ids(tokenizer)
    return next((int(index) for index in ids if index in special), None)


def eos_token_ids(*sources: object) -> tuple[int, ...]:
    """Ids that end a text, as tokenizers, configs and generation configs name them in `eos_token_id`."""
    found: set[int] = set()
    for source in sources:
        ids: int | Iterable[int] | None = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    return tuple(sorted(found))


def completion_end_ids(tokenizer: PreTrainedTokenizerBase, *configs: object) -> tuple[int, ...]:
    """EOS, and the template's end of turn where that is another token: what training puts last, rollouts stop at.

    Args:
        tokenizer: The model's.
        configs: Of the model, which may name EOS too.
    """
    eos, turn = eos_token_ids(*configs, tokenizer), end_of_turn_id(tokenizer)
    if turn is None or turn in eos:
        return eos
    names = [tokenizer.convert_ids_to_tokens(index) for index in (turn, *eos)]
    _log.warning(
        "The chat template ends a turn with %r, which is not EOS %s: completions end at either. Set eos_token of the "
        "tokenizer to it if that is what the model should end with everywhere.",
        names[0],
        names[1:],
    )
    return tuple(sorted({*eos, turn}))


def ask_backend(backend: Any, texts: list[str], special: bool) -> list[list[int]]:
    """Token ids of texts by the Rust core of a tokenizer, which is not to truncate or pad.

    Args:
        backend: The core.
        texts: The texts.
        special: Whether it adds what it puts around a text.
    """
    return [line.ids for line in backend.encode_batch_fast(texts, add_special_tokens=special)]


def around(plain: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and behind a text: from its ids without and with that."""
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []
