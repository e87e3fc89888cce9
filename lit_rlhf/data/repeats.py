"""What makes two records the same, and what makes one say the opposite of another."""

import hashlib
import json
from collections.abc import Iterator
from itertools import combinations

from lit_rlhf.data.records import Record, Text


def record_hash(record: Record) -> int:
    """64 bits, equal for records with the same prompt, completions and label; margins and scores don't count."""
    return _hash(record.prompt, *record.completions, str(record.fields.get("label", "")))


def texts_hash(record: Record) -> int:
    """64 bits, equal for records with the same prompt and completions in whichever order."""
    return _hash(record.prompt, *sorted(map(_plain, record.completions)))


def prompt_hash(record: Record) -> int:
    """64 bits, equal for equal prompts."""
    return _hash(record.prompt)


def comparisons(record: Record) -> Iterator[tuple[int, bool]]:
    """What a record says of its completions: what is compared, and which way; the same of the other way contradicts it.

    Of pairs, that the first is preferred (or the second, where `p_chosen` or `margin` say so), of rankings the same of
    each two whose scores differ, of labelled completions the label.

    Example:
        >>> one, other = (Record("q", answers) for answers in (("a", "b"), ("b", "a")))
        >>> (key, first), (same, second) = *comparisons(one), *comparisons(other)
        >>> key == same, first == second
        (True, False)
    """
    if record.steps:
        return
    if len(record.completions) == 1 and "label" in record.fields:
        yield _hash(record.prompt, record.completions[0]), bool(record.fields["label"])
    scores = record.fields.get("score")
    for one, other in combinations(range(len(record.completions)), 2):
        says = scores[one] - scores[other] if isinstance(scores, tuple) else _preference(record)
        texts = [_plain(record.completions[place]) for place in (one, other)]
        if says and texts[0] != texts[1]:
            yield _hash(record.prompt, *sorted(texts)), (says > 0) == (texts[0] < texts[1])


def _preference(record: Record) -> float:
    """Above 0 where the first completion of a pair is preferred, below where the second is, 0 where neither."""
    p_chosen, margin = record.fields.get("p_chosen"), record.fields.get("margin")
    if isinstance(p_chosen, float | int):
        return p_chosen - 0.5
    return margin if isinstance(margin, float | int) and margin != 0 else 1.0


def _hash(*texts: Text) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for text in map(_plain, texts):
        content = text.encode(errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return int.from_bytes(digest.digest(), "little")


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else json.dumps(text, sort_keys=True, default=repr)
