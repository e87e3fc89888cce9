"""Texts as the hashes of their words, and of runs of words: what duplicates and leakage are found by."""

import hashlib
import re
from functools import lru_cache

import numpy as np

from lit_rlhf.data.records import Text

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(f"[{_CJK}]|[^\\W{_CJK}]+")  # scripts without spaces: each character is a word
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MOST_KNOWN = 200_000


def plain_text(text: Text, *, system: bool = False) -> str:
    """A text without its roles.

    Args:
        text: Plain text or messages.
        system: Whether system turns, which many rows share, are kept.
    """
    if isinstance(text, str):
        return text
    left_out = () if system else ("system", "developer")
    return "\n\n".join(str(turn["content"]) for turn in text if turn["role"] not in left_out)


def split_words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation.

    Example:
        >>> split_words("It's 3 o'clock, 你好!")
        ['it', 's', '3', 'o', 'clock', '你', '好']
    """
    return _WORD.findall(text.lower())


@lru_cache(_MOST_KNOWN)
def _hash_word(word: str) -> int:
    """64 bits, the same in each process and on each machine."""
    digest = hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def hash_words(text: str) -> np.ndarray:
    """The hashes of a text's words, in order: (n,) uint64."""
    return np.array([_hash_word(word) for word in split_words(text)], dtype=np.uint64)


def hash_runs(words: np.ndarray, length: int) -> np.ndarray:
    """Hashes of all runs of so many words: (n - length + 1,) uint64, empty where there are fewer.

    Args:
        words: (n,) uint64, hashes of words.
        length: Of a run.
    """
    count = len(words) - length + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    runs = np.full(count, length, dtype=np.uint64)
    for place in range(length):
        runs *= _MULTIPLIER
        runs += words[place : place + count]
        runs ^= runs >> np.uint64(29)
    return runs
