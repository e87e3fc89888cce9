"""What data and models must agree on of a tokenizer: whether it is the same one, and what fills padding (layer L0)."""

import hashlib
import json

from transformers import PreTrainedTokenizerBase


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
