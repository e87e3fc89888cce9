"""Texts to token ids, many with one call, by the shortest way that gives the tokenizer's own ids."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.pieces import ask_backend, find_pieces

_CHARACTERS_AT_ONCE = 200_000  # a tokenizer's own records of a text take some hundred bytes a token
_FEW_TEXTS = 5000  # before it pays to look for a faster way


class TextEncoder:
    """Turns texts into token ids.

    Args:
        tokenizer: Whose ids they are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._bos = tokenizer.bos_token_id
        self._added_at_end = _added_at_end(tokenizer)
        self._backend = _direct_backend(tokenizer)
        self._ask: Callable[[list[str], bool], list[list[int]]] = partial(
            ask_backend, self._backend
        )
        self._texts = 0

    def __call__(self, texts: Iterable[str], *, special: bool) -> dict[str, list[int] | None]:
        """Token ids of texts; None for what is no text, such as half a character.

        Args:
            texts: Whole texts.
            special: Whether BOS goes in front, if the tokenizer adds one. What it adds at the end is taken off: what
                ends a completion is decided elsewhere. A BOS that the text spells out itself is not doubled.
        """
        found: dict[str, list[int] | None] = {}
        for portion in _portions(dict.fromkeys(texts)):
            try:
                found.update(zip(portion, self._call(portion, special=special), strict=True))
            except Exception:  # noqa: BLE001  (of one text among many: each is asked for by itself)
                for text in portion:
                    try:
                        (found[text],) = self._call([text], special=special)
                    except Exception:  # noqa: BLE001  (tokenizers raise what they like)
                        found[text] = None
        return found

    def _call(self, texts: list[str], *, special: bool) -> list[list[int]]:
        if self._backend is None or _cuts_or_pads(self._backend):  # somebody may have set it since
            batches = _call_tokenizer(self.tokenizer, texts, special)
        else:
            before, self._texts = self._texts, self._texts + len(texts)
            if before <= _FEW_TEXTS < self._texts:
                self._ask = find_pieces(self._backend) or self._ask
            batches = self._ask(texts, special)
        if special and self._added_at_end:
            batches = [ids[: -self._added_at_end] for ids in batches]
        if special and self._bos is not None:
            doubled = [self._bos, self._bos]
            batches = [ids[1:] if ids[:2] == doubled else ids for ids in batches]
        return batches


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that stand for no text: end of a turn, BOS, EOS and the like."""
    added = {int(index) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | {int(index) for index in tokenizer.all_special_ids})


def _call_tokenizer(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool
) -> list[list[int]]:
    # verbose=False: texts longer than the model are no news here, the limits of the data decide.
    ids: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return ids


def _cuts_or_pads(backend: Any) -> bool:
    return backend.truncation is not None or backend.padding is not None


def _direct_backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The Rust core of a tokenizer, which spares a quarter of the time, if it gives the same ids as the tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or _cuts_or_pads(backend):
        return None
    probes = ["a", " a  b\n\n\tc. ", "naïve 🙂 ﬁ\u200d\r\n", "".join(tokenizer.all_special_tokens)]
    probes += [f"x{token} y" for token in tokenizer.all_special_tokens]
    for special in (False, True):
        if ask_backend(backend, probes, special) != _call_tokenizer(tokenizer, probes, special):
            return None
    return backend


def _added_at_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the tokenizer puts behind a text of its own accord."""
    plain, whole = (
        list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True)
    )
    if not plain:
        return int(whole[-1:] == [tokenizer.eos_token_id])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return len(whole) - len(plain) - start
    return 0


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
