"""What makes two records the same, and what makes one say the opposite of another."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import combinations

from lit_rlhf.data.records import Record, Text


class Identity:
    """Hashes of a record, 64 bits each, by which it is known again.

    Args:
        record: The record.

    Example:
        >>> one, other = (Identity(Record("q", answers)) for answers in (("a", "b"), ("b", "a")))
        >>> one.record() == other.record(), one.texts() == other.texts()
        (False, True)
        >>> (key, first), (same, second) = *one.comparisons(), *other.comparisons()
        >>> key == same, first == second
        (True, False)
    """

    def __init__(self, record: Record) -> None:
        self._fields, self._steps = record.fields, record.steps
        self._prompt, *self._answers = map(_plain, (record.prompt, *record.completions))

    def record(self) -> int:
        """Equal for the same prompt, completions and label; margins and scores don't count."""
        return _hash([self._prompt, *self._answers, str(self._fields.get("label", ""))])

    def texts(self) -> int:
        """Equal for the same prompt and completions in whichever order."""
        return _hash([self._prompt, *sorted(self._answers)])

    def prompt(self) -> int:
        """Equal for the same prompt."""
        return _hash([self._prompt])

    def comparisons(self) -> Iterator[tuple[int, bool]]:
        """What is compared, and which way: the same with the other way is a contradiction.

        Of pairs, that the first is preferred (or the second, where `p_chosen` or `margin` say so), of rankings the same
        of each two whose scores differ, of a labelled completion its label.
        """
        if self._steps:
            return
        if len(self._answers) == 1 and "label" in self._fields:
            yield _hash([self._prompt, *self._answers]), bool(self._fields["label"])
        scores = self._fields.get("score")
        for one, other in combinations(range(len(self._answers)), 2):
            first, second = self._answers[one], self._answers[other]
            says = scores[one] - scores[other] if isinstance(scores, tuple) else self._preference()
            if says and first != second:
                yield (
                    _hash([self._prompt, *sorted((first, second))]),
                    (says > 0) == (first < second),
                )

    def _preference(self) -> float:
        """Above 0 where the first completion of a pair is preferred, below where the second is, 0 where neither."""
        p_chosen, margin = self._fields.get("p_chosen"), self._fields.get("margin")
        if isinstance(p_chosen, float | int):
            return p_chosen - 0.5
        return margin if isinstance(margin, float | int) and margin != 0 else 1.0


def _hash(texts: Sequence[str]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        content = text.encode(errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return int.from_bytes(digest.digest(), "little")


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else json.dumps(text, sort_keys=True, default=repr)
