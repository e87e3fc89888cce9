"""Questions about tokenizers: how one is loaded, whether two agree, what pads, what ends a text."""

import hashlib
import json
import logging
from collections.abc import Iterable

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_rlhf.hub import from_hub

_log = logging.getLogger(__name__)


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
    tokenizer: PreTrainedTokenizerBase = from_hub(
        lambda: AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code, padding_side="right"
        ),
        name,
        "tokenizer",
    )
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
    special = set(tokenizer.all_special_ids)
    special |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
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
