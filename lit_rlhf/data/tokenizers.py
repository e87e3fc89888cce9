"""Ids of texts."""

from transformers import PreTrainedTokenizerBase


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


def text_ids(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool
) -> list[list[int]]:
    """Tokenize texts.

    Args:
        tokenizer: The tokenizer.
        texts: Whole texts.
        special: Whether BOS goes in front, if the tokenizer adds one. An EOS that it adds at the end is taken off: what
            ends a completion is decided elsewhere. A BOS that the text spells out itself is not doubled.
    """
    # verbose=False: texts longer than the model are no news here, the limits of the data decide.
    batches: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    if not special:
        return batches
    bos, eos, eos_token = tokenizer.bos_token_id, tokenizer.eos_token_id, str(tokenizer.eos_token)
    return [
        _plain_ends(list(ids), bos, None if text.endswith(eos_token) else eos)
        for text, ids in zip(texts, batches, strict=True)
    ]


def _plain_ends(ids: list[int], bos: int | None, added_eos: int | None) -> list[int]:
    if added_eos is not None and ids and ids[-1] == added_eos:
        ids = ids[:-1]
    if bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids
