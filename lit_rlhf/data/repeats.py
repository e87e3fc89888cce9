"""What makes two records the same, what makes one say the opposite of another, and what becomes of those."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Literal, get_args

from lit_rlhf.data.conversion import Source
from lit_rlhf.data.records import InvalidRowError, Record, Text, shorten
from lit_rlhf.options import check_choice

RepeatPolicy = Literal["keep", "drop", "error"]


@dataclass(frozen=True)
class Repeats:
    """What becomes of records that occur again, and of those that contradict each other.

    Each source is looked at by itself. Finding them takes some 100 bytes of memory a record while tokens are made, and
    contradictions a further pass over the rows. Near-duplicates are counted by `lit-rlhf data inspect` alone.

    Args:
        duplicates: Of records with the same prompt, completions and label, all are kept; or all but the first are left
            out and counted (drop); or the run ends (error).
        contradicting: The same for records that say the opposite of another one: pairs that prefer the other answer,
            rankings that order two answers otherwise, labels that differ. They are dropped on both sides.

    Raises:
        ConfigurationError: Something else.
    """

    duplicates: RepeatPolicy = "keep"
    contradicting: RepeatPolicy = "keep"

    def __post_init__(self) -> None:
        for name in ("duplicates", "contradicting"):
            check_choice(self, name, getattr(self, name), *get_args(RepeatPolicy))

    def refused(self) -> list[str]:
        """The options that end the run."""
        return [name for name, policy in vars(self).items() if policy == "error"]


class RepeatError(InvalidRowError):
    """A record that occurs again; `Repeats` says what happens to it."""

    option: ClassVar[str] = "duplicates"


class ContradictionError(InvalidRowError):
    """A record that contradicts another one; `Repeats` says what happens to it."""

    option: ClassVar[str] = "contradicting"


class RepeatFinder:
    """Puts an error in the place of records that occur again or contradict another one.

    Args:
        repeats: What to look for.
        source: Where the records come from, for messages.
        records: All of them, for those that contradict each other; gone through where these are looked for.
    """

    def __init__(self, repeats: Repeats, source: Source, records: Iterable[Record]) -> None:
        self._repeats, self._source = repeats, source
        self._seen: dict[int, int] = {}  # record: number of its row
        self._opposed: set[int] = set()
        if repeats.contradicting != "keep":
            ways: dict[int, bool] = {}
            for record in records:
                for key, way in Identity(record).comparisons():
                    if ways.setdefault(key, way) != way:
                        self._opposed.add(key)

    def __call__(self, number: int, found: Record | InvalidRowError) -> Record | InvalidRowError:
        """The record, or an error in its place.

        Args:
            number: Of its row in the source, counted from 0.
            found: The record; errors stay as they are.
        """
        if isinstance(found, InvalidRowError):
            return found
        identity = Identity(found)
        if self._opposed and any(key in self._opposed for key, _ in identity.comparisons()):
            prompt = found.prompt if isinstance(found.prompt, str) else found.prompt[-1]["content"]
            return ContradictionError("contradicts another one", f"of the prompt {shorten(prompt)}")
        if self._repeats.duplicates != "keep":
            key = identity.record()
            if key in self._seen:
                first = self._source.locate(self._seen[key])
                return RepeatError("repeats an earlier one", f"the first is that of {first}")
            self._seen[key] = number
        return found


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
        # Of a pair above 0 where the first is preferred, below where the second is, 0 where neither.
        p_chosen, margin = self._fields.get("p_chosen"), self._fields.get("margin")
        preferred = margin if isinstance(margin, float | int) and margin != 0 else 1.0
        preferred = p_chosen - 0.5 if isinstance(p_chosen, float | int) else preferred
        scores = self._fields.get("score")
        for one, other in combinations(range(len(self._answers)), 2):
            first, second = self._answers[one], self._answers[other]
            says = scores[one] - scores[other] if isinstance(scores, tuple) else preferred
            if says and first != second:
                yield (
                    _hash([self._prompt, *sorted((first, second))]),
                    (says > 0) == (first < second),
                )


def _hash(texts: Sequence[str]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        content = text.encode(errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return int.from_bytes(digest.digest(), "little")


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else json.dumps(text, sort_keys=True, default=repr)
