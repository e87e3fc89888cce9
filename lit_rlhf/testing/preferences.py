"""Synthetic rows with a rule that can be learned: the chosen answer is kind, the rejected one is not.

Rows are plain dictionaries with the columns that `lit_rlhf.data` reads by default (`prompt`, `chosen`, `rejected`,
`completion`). Each is a pure function of (seed, index): the first n of more rows are the same n rows.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lit_rlhf.seeding import stable_hash

SUBJECTS = ("film", "book", "song", "play", "meal", "walk", "game", "talk")
KIND = ("good", "great", "fine", "warm", "bright")
UNKIND = ("bad", "awful", "poor", "cold", "dull")
NEUTRAL = ("it was", "i found it", "they say it is", "to me it is")


def tiny_prompts(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Questions, with the column `prompt`.

    Args:
        n: Number of rows; they are distinct, since each names its index.
        seed: Other seeds give other rows.

    Example:
        >>> tiny_prompts(1)
        [{'prompt': 'how was the book 0? '}]
    """
    return [{"prompt": _prompt(index, seed)} for index in range(n)]


def tiny_preferences(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs, with the columns `prompt`, `chosen` and `rejected`: a word of `KIND` is chosen, one of `UNKIND` rejected.

    Args:
        n: Number of rows.
        seed: Other seeds give other rows.
    """
    return [
        {
            "prompt": _prompt(index, seed),
            "chosen": _answer(KIND, index, seed),
            "rejected": _answer(UNKIND, index, seed),
        }
        for index in range(n)
    ]


def tiny_rankings(n: int, seed: int = 0, completions: int = 3) -> list[dict[str, object]]:
    """Lists, with the columns `prompt`, `completions` and `scores`: kind words score above unkind ones.

    Args:
        n: Number of rows.
        seed: Other seeds give other rows.
        completions: Completions of each prompt.
    """
    rows: list[dict[str, object]] = []
    for index in range(n):
        answers = [f"{_answer((KIND, UNKIND)[k % 2], index, seed)} {k}" for k in range(completions)]
        scores = [float(completions - k) - 2.0 * (k % 2) for k in range(completions)]
        rows.append({"prompt": _prompt(index, seed), "completions": answers, "scores": scores})
    return rows


def tiny_demonstrations(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Answers to imitate, with the columns `prompt` and `completion`: kind and unkind ones in equal shares.

    Args:
        n: Number of rows.
        seed: Other seeds give other rows.
    """
    return [
        {
            "prompt": _prompt(index, seed),
            "completion": _answer((KIND, UNKIND)[index % 2], index, seed),
        }
        for index in range(n)
    ]


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Write rows to a JSONL file, one object a line.

    Args:
        path: The file; its directory is made if it is missing.
        rows: What to write.

    Returns:
        The file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_jsonl(rows), encoding="utf-8")
    return path


def to_jsonl(rows: Iterable[Mapping[str, object]]) -> str:
    """What `write_jsonl` writes."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _prompt(index: int, seed: int) -> str:
    return f"how was the {_pick(SUBJECTS, 'subject', index, seed)} {index}? "


def _answer(words: Sequence[str], index: int, seed: int) -> str:
    # The purpose leaves out which list it is: both answers of a pair begin alike and have the word at the same place.
    return f"{_pick(NEUTRAL, 'opening', index, seed)} {_pick(words, 'word', index, seed)}"


def _pick(words: Sequence[str], purpose: str, index: int, seed: int) -> str:
    return words[stable_hash(seed, purpose, index) % len(words)]
