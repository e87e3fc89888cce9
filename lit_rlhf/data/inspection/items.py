"""The records of a source as they are looked at: text, lengths and words of each, and a count of what is left out."""

from collections import Counter
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.conversion import Conversion, Source, check_identical, grouped, rows_of
from lit_rlhf.data.encoding import Encoded, Encoder
from lit_rlhf.data.inspection.words import hash_words, plain_text
from lit_rlhf.data.kinds import shape_of
from lit_rlhf.data.preparation import Report, attempts
from lit_rlhf.data.recognition import Reading
from lit_rlhf.data.records import InvalidRowError, Record, Row, UnreadableRow
from lit_rlhf.data.repeats import Identity

_ORIGINS = ("source", "subset", "dataset", "domain", "task", "category", "language", "lang")
_MOST_ORIGINS = 200
OTHER_ORIGINS = "(others)"


@dataclass
class Item:
    """A record that is used.

    Args:
        number: Place of its row in the source, counted from 0.
        place: Which of the row's records it is, counted from 0.
        row: Its row.
        record: The record.
        origin: What its row says it comes from; empty where rows don't say so.
        encoded: Its tokens; None without a tokenizer.
    """

    number: int
    place: int
    row: Row
    record: Record
    origin: str
    encoded: Encoded | None

    @cached_property
    def prompt(self) -> str:
        """Its prompt, without system turns and roles."""
        return plain_text(self.record.prompt)

    @cached_property
    def answers(self) -> list[str]:
        """Its completions; the steps of a solution are one."""
        texts = [plain_text(completion) for completion in self.record.completions]
        return ["".join(texts)] if self.record.steps else texts

    @cached_property
    def identity(self) -> Identity:
        """What it is known again by."""
        return Identity(self.record)

    @cached_property
    def words(self) -> list[np.ndarray]:
        """Hashes of the words of prompt and answers, (n,) uint64 each."""
        return [hash_words(text) for text in (self.prompt, *self.answers)]

    @cached_property
    def lengths(self) -> tuple[int, list[int]]:
        """Of the prompt and of each answer: tokens, or characters without a tokenizer."""
        if self.encoded is None:
            texts = [self.record.prompt, *self.record.completions]
            prompt, *answers = (len(plain_text(text, system=True)) for text in texts)
            return prompt, [sum(answers)] if self.record.steps else answers
        counts = [len(ids) for ids in self.encoded.completions]
        return len(self.encoded.prompt), [sum(counts)] if self.record.steps else counts

    @cached_property
    def names(self) -> list[str]:
        """What the answers are called: chosen and rejected, best and others, by label, or answer."""
        fields, count = self.record.fields, len(self.answers)
        scores = fields.get("score")
        if self.record.steps:
            return ["solution"]
        if isinstance(scores, tuple):
            best = max(scores)
            return ["best" if score == best else "others" for score in scores]
        if count == 2:
            return ["chosen", "rejected"]
        if "label" in fields:
            return ["desirable" if fields["label"] else "undesirable"]
        return ["answer"] * count

    @property
    def pair(self) -> tuple[int, int] | None:
        """Places of the better and the worse answer: of rankings the best and the worst, None where there are none."""
        scores = self.record.fields.get("score")
        if self.record.steps or len(self.answers) < 2:
            return None
        if not isinstance(scores, tuple):
            return 0, 1
        best, worst = scores.index(max(scores)), scores.index(min(scores))
        return None if best == worst else (best, worst)


@dataclass
class Reader:
    """Goes through the records of a source as the DataModule of their kind would, and counts what is left out.

    Args:
        source: Where rows come from.
        reading: Which format reads them.
        tokenizer: Makes tokens of them. None: text alone is looked at.
        by: Column that says where a row comes from. None: `source`, `subset`, `domain` or the like, if there is one.
    """

    source: Source
    reading: Reading
    tokenizer: PreTrainedTokenizerBase | None = None
    by: str | None = None
    report: Report = field(init=False)
    used: Counter[str] = field(default_factory=Counter, init=False)
    left_out: Counter[str] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        self.joined = grouped(self.source, self.reading.format)
        shape = shape_of(self.reading.kind)
        self._convert = Conversion(self.joined, self.reading.format, shape)
        self.encoder = Encoder(self.tokenizer) if self.tokenizer is not None else None
        self.report = Report(str(self.source), shape.unit)

    def __iter__(self) -> Iterator[Item]:
        """The records that are used, in order."""
        for each in attempts(self._convert, self.encoder, self.report):
            origin = self._origin(each.row)
            try:
                record, tokens = each.sound()
                texts = [str(completion) for completion in record.completions]
                check_identical(
                    record, *(tokens.completions, "tokens") if tokens else (texts, "characters")
                )
            except InvalidRowError as error:
                self.left_out[origin] += 1
                self.report.leave_out(self.joined.locate(each.number), error)
                continue
            self.used[origin] += 1
            self.report.records += 1
            yield Item(each.number, each.place, each.row, record, origin, tokens)

    def again(self, wanted: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Record]:
        """Some records once more, by number of the row and place in it; rows are read, and only these converted."""
        places: dict[int, list[int]] = {}
        for number, place in wanted:
            places.setdefault(number, []).append(place)
        last = max(places, default=-1)
        # Another source: one that is left halfway no longer knows where the rows behind are.
        joined = grouped(copy(self.source), self.reading.format)
        found: dict[tuple[int, int], Record | InvalidRowError] = {}
        for number, row in enumerate(islice(rows_of(joined), last + 1)):
            if number in places:
                records = self._convert(number, row)
                found |= {(number, place): records[place] for place in places[number]}
        return {at: each for at, each in found.items() if isinstance(each, Record)}

    def _origin(self, row: Row) -> str:
        """What a row says it comes from, "" for nothing; beyond 200 such values, the further ones count as one."""
        if isinstance(row, UnreadableRow):
            return ""
        if self.by is None:
            self.by = next((name for name in _ORIGINS if name in row), "")
        value = row.get(self.by)
        parts = value if isinstance(value, list | tuple) else [] if value is None else [value]
        origin = ", ".join(map(str, parts))
        known = len(self.used) < _MOST_ORIGINS or origin in self.used
        return origin[:80] if known else OTHER_ORIGINS
