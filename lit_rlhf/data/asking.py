"""Many texts tokenized with few calls of the tokenizer.

A call costs more than the tokens of a short text. So whatever needs token ids is a generator: it yields an `Ask` and is
sent the ids of its texts, as if it had called the tokenizer. `together` runs many such generators side by side and asks
the tokenizer once for all the texts that they stand at. What a generator is sent doesn't depend on the others.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.tokenizers import text_ids

T = TypeVar("T")
Ids: TypeAlias = list[list[int]]
_CHARACTERS_AT_ONCE = 200_000  # a tokenizer's own records of a text take some hundred bytes a token


class Ask(NamedTuple):
    """Texts to tokenize; see `text_ids`."""

    texts: list[str]
    special: bool


Asking: TypeAlias = Generator[Ask, Any, T]
"""Work that asks for token ids and in the end returns T."""


def ids_of(texts: list[str], *, special: bool) -> Asking[Ids]:
    """The token ids of texts, to be had with `yield from`."""
    ids: Ids = yield Ask(texts, special)
    return ids


def together(tokenizer: PreTrainedTokenizerBase, works: Sequence[Asking[T]]) -> list[T]:
    """Run generators side by side to their ends.

    An exception of the tokenizer is thrown into the generator whose texts it refuses. What a generator raises ends all.

    Args:
        tokenizer: Answers.
        works: Generators that were not started yet.

    Returns:
        What each returned.
    """
    results: dict[int, T] = {}
    replies: dict[int, Ids | Exception | None] = dict.fromkeys(
        range(len(works))
    )  # None starts a generator
    while replies:
        asked: dict[int, Ask] = {}
        for place, reply in replies.items():
            work = works[place]
            try:
                asked[place] = (
                    work.throw(reply) if isinstance(reply, Exception) else work.send(reply)
                )
            except StopIteration as end:
                results[place] = end.value
        replies = _replies(tokenizer, asked)
    return [results[place] for place in range(len(works))]


def _replies(
    tokenizer: PreTrainedTokenizerBase, asked: Mapping[int, Ask]
) -> dict[int, Ids | Exception | None]:
    try:
        found = {
            special: _lookup(tokenizer, asked.values(), special=special)
            for special in (False, True)
        }
    except Exception:  # noqa: BLE001  (of one text among many: each is asked for by itself)
        return {place: _reply(tokenizer, ask) for place, ask in asked.items()}
    return {place: [found[ask.special][text] for text in ask.texts] for place, ask in asked.items()}


def _reply(tokenizer: PreTrainedTokenizerBase, ask: Ask) -> Ids | Exception:
    try:
        return text_ids(tokenizer, ask.texts, special=ask.special)
    except Exception as error:  # noqa: BLE001  (whoever asked raises it)
        return error


def _lookup(
    tokenizer: PreTrainedTokenizerBase, asks: Iterable[Ask], *, special: bool
) -> dict[str, list[int]]:
    texts = dict.fromkeys(text for ask in asks if ask.special == special for text in ask.texts)
    found: dict[str, list[int]] = {}
    for portion in _portions(texts):
        found.update(zip(portion, text_ids(tokenizer, portion, special=special), strict=True))
    return found


def _portions(texts: Iterable[str]) -> Iterator[list[str]]:
    portion: list[str] = []
    size = 0
    for text in texts:
        portion.append(text)
        size += len(text)
        if size >= _CHARACTERS_AT_ONCE:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
