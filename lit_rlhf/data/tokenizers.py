"""What data need of tokenizers: loading one, its ids for text."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_rlhf.errors import ConfigurationError

_ANCHOR = "\n"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a directory or the hub.

    Raises:
        ConfigurationError: There is none.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"Can't load the tokenizer {name!r} (data option `tokenizer`): {' '.join(str(error).split())[:400]}. Give "
            "the directory that the model was saved to, a hub id, or from Python a tokenizer object."
        ) from error
    return tokenizer


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that stands before a text without prompt: BOS, else EOS, as language models are trained."""
    for candidate in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return None


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that stand for no text: end of a turn, BOS, EOS and the like."""
    added = {int(index) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | {int(index) for index in tokenizer.all_special_ids})


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[list[int]]:
    """Tokenize texts.

    Args:
        tokenizer: The tokenizer.
        texts: Whole texts.
        special: Whether BOS goes in front, if the tokenizer adds one. An EOS that it adds at the end is taken off: what
            ends a completion is decided elsewhere. A BOS that the text spells out itself is not doubled.
    """
    # verbose=False: texts longer than the model are no news here, the limits of the data decide.
    batches: list[list[int]] = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
    if not special:
        return batches
    return [_plain_ends(tokenizer, text, list(ids)) for text, ids in zip(texts, batches, strict=True)]


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize text that goes on from other text, so without the space that some tokenizers put at a start."""
    anchor, anchored, alone = text_ids(tokenizer, [_ANCHOR, _ANCHOR + text, text], special=False)
    return anchored[len(anchor) :] if anchored[: len(anchor)] == anchor else alone


def _plain_ends(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is not None and ids and ids[-1] == eos and not text.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]
    if bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids
