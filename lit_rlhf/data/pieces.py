"""Ids of texts from those of their pieces, which mostly are known: the tokenizer's own ids in a fifth of its time.

Most fast tokenizers cut a text into pieces by regular expressions (about words) and make tokens of each piece by
itself. A text's pieces mostly were in other texts, so their tokens are known; cutting and looking up takes a fifth of
the time of tokenizing. It is done only where it gives the tokenizer's own ids: `find_pieces` knows the parts of a
tokenizer that it stands for and tries them, on every character that it will ever handle; texts with others, or with a
special token spelled out in them, go to the tokenizer.
"""

import json
import re
import unicodedata
from functools import cache
from itertools import chain
from typing import Any

from lit_rlhf.tokenizers import around, ask_backend

_MOST_PIECES = 100_000  # some 30 MB
_HANDLED = (
    *range(0x250),
    *range(0x2000, 0x2070),
)  # Latin letters and general punctuation, long in Unicode
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How `ByteLevel` cuts, from GPT-2 on."""
_NEVER = 0x10FFFF  # not among them: a class must have a member
_FOREIGN = re.compile("[^\0-\u024f\u2000-\u206f]")
_SPACE = "\t\n\v\f\r \x85\xa0\u2000-\u200a\u2028\u2029\u202f\u205f"
_UNLIKE = re.compile(r"\\[pP]|\\[bBwWhHRXGKkgdD]|&&|\[\[|\[:|\(\?[^:=!i]|\(\?i[^:]")
_CLASS = re.compile(r"\\p\{(\w+)\}|(\\s)|(\\S)|(\\.)|(\[\^?)|(\])", re.DOTALL)


class Pieces:
    """Ids of texts whose pieces are known or become so.

    Args:
        backend: The tokenizer.
        cuts: Regular expressions, applied one after the other: what one matches is a piece, and what lies between.
        added: Texts that are tokens wherever they stand.
        composed: Whether texts must be in the composed form (NFC), since the tokenizer brings them to it.
    """

    def __init__(
        self, backend: Any, cuts: list[re.Pattern[str]], added: list[str], *, composed: bool
    ) -> None:
        self.backend = backend
        self.cuts = cuts
        self.composed = composed
        self._special = re.compile("|".join(map(re.escape, added)) or r"(?!)")
        self._known: dict[str, list[int]] = {}
        (plain,), (whole,) = (ask_backend(backend, ["a"], special) for special in (False, True))
        self._around = around(plain, whole)

    def __call__(self, texts: list[str], special: bool) -> list[list[int]]:
        """Token ids of texts, as `ask_backend` gives them."""
        found = [self._ids(text) for text in texts]
        unknown = [text for text, ids in zip(texts, found, strict=True) if ids is None]
        asked = iter(ask_backend(self.backend, unknown, special))
        start, end = self._around if special else ([], [])
        return [next(asked) if ids is None else [*start, *ids, *end] for ids in found]

    def _ids(self, text: str) -> list[int] | None:
        """Of a text as it stands; None where the tokenizer must be asked."""
        if not text.isascii() and (
            _FOREIGN.search(text) or (self.composed and not unicodedata.is_normalized("NFC", text))
        ):
            return None
        if self._special.search(text):
            return None
        pieces = self.cut(text)
        try:
            return list(chain.from_iterable(map(self._known.__getitem__, pieces)))
        except KeyError:
            return self._learn(pieces)

    def cut(self, text: str) -> list[str]:
        """The pieces of a text."""
        pieces = [text]
        for cut in self.cuts:
            pieces = [piece for text in pieces for piece in cut.split(text) if piece]
        return pieces

    def _learn(self, pieces: list[str]) -> list[int] | None:
        if len(self._known) > _MOST_PIECES:
            self._known = {}
        new = list({piece for piece in pieces if piece not in self._known})
        if any(self.cut(piece) != [piece] for piece in new):
            return None  # by itself it would be cut further
        for piece, line in zip(new, ask_backend(self.backend, new, False), strict=True):
            self._known[piece] = line
        return [index for piece in pieces for index in self._known[piece]]


def find_pieces(backend: Any) -> Pieces | None:
    """What stands for a tokenizer, or None where its parts are others or a probe gives other ids."""
    parts = json.loads(backend.to_str())
    patterns = _patterns(parts["pre_tokenizer"] or {})
    normal = parts["normalizer"]
    added = [token["content"] for token in parts["added_tokens"]]
    if (
        not patterns
        or (normal is not None and normal != {"type": "NFC"})
        or parts["model"].get("dropout")
        or not all(unicodedata.is_normalized("NFC", content) for content in added)
    ):
        return None
    try:
        cuts = [re.compile(f"({_translate(pattern)})") for pattern in patterns]
    except (ValueError, re.error):
        return None
    if any(cut.groups > 1 or cut.fullmatch("") for cut in cuts):
        return None
    found = Pieces(backend, cuts, added, composed=normal is not None)
    # Every character between letters, digits, spaces, line breaks, signs and its own kind.
    frames = ("a{0}b", " {0}", "{0}{0} a", "1{0}2", "'{0}", "\n{0}\n", ".{0} ", " \t{0}1")
    probes = [frame.format(chr(code)) for code in _HANDLED for frame in frames]
    probes += ["", "  a   b\n\n\n c \r\n d", "I'LL don't we'Ve 12345 3.14 x=y;  ", " \n \n\t"]
    split = backend.pre_tokenizer.pre_tokenize_str
    alike = all(
        found.cut(text) == [text[start:end] for _, (start, end) in split(text)] for text in probes
    ) and all(
        found(probes[-50:], special) == ask_backend(backend, probes[-50:], special)
        for special in (False, True)
    )
    return found if alike else None


def _patterns(part: dict[str, Any]) -> list[str]:
    """What a part of the tokenizer cuts by; nothing where it does more than to cut."""
    match part:
        case {"type": "Sequence", "pretokenizers": steps}:
            *first, last = steps
            found = [_patterns(step) for step in first]
            cuts = last.get("use_regex") or last.get("add_prefix_space")
            ends = (last["type"] == "ByteLevel" and not cuts) or bool(_patterns(last))
            return [*chain.from_iterable(found), *_patterns(last)] if all(found) and ends else []
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}:
            return [] if part.get("invert") else [regex]
        case {"type": "Digits", "individual_digits": alone}:
            return [r"\p{N}" if alone else r"\p{N}+"]
        case {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}:
            return [_WORDS]
    return []


def _translate(pattern: str) -> str:
    """A regular expression of the tokenizers library as one of Python's, for the characters of `_HANDLED`."""
    inside = False

    def other(match: re.Match[str]) -> str:
        nonlocal inside
        category, space, not_space, _, opened, closed = match.groups()
        if opened or closed:
            inside = bool(opened)
        if category or space:
            members = _members(category) if category else _SPACE
            return members if inside else f"[{members}]"
        if not_space:
            if inside:
                raise ValueError(pattern)
            return f"[^{_SPACE}]"
        return match[0]

    translated = _CLASS.sub(other, pattern)
    if _UNLIKE.search(translated):
        raise ValueError(pattern)
    return translated


@cache
def _members(category: str) -> str:
    """The characters of a category, as the inside of a class."""
    if not re.fullmatch("[LMNPSZC][a-z]?", category):
        raise ValueError(category)
    found = [code for code in _HANDLED if unicodedata.category(chr(code)).startswith(category)]
    return "".join(f"\\U{code:08x}" for code in (*found, _NEVER))
