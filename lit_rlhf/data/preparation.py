"""From a source to tokenized rows, with a count of what was left out and why."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from lit_rlhf.data.conversion import Conversion, Shape, check_identical
from lit_rlhf.data.encoding import Encoded, Encoder
from lit_rlhf.data.records import InvalidRowError, Record, Row, rows_of_group
from lit_rlhf.data.repeats import RepeatFinder, Repeats
from lit_rlhf.data.report import (
    OPTIONAL_FIELDS,
    InvalidPolicy,
    LengthPolicy,
    Report,
    required_fields,
)
from lit_rlhf.data.sources import Source, rows_of
from lit_rlhf.seeding import stable_hash

_ROWS_AT_ONCE = 512


@dataclass
class Preparation:
    """Reads, converts, checks and tokenizes a source; iterating over it yields rows for the cache and fills `report`.

    Args:
        source: Where rows come from.
        convert: Turns a raw row into records.
        encoder: Tokenizes records.
        shape: What records must look like.
        invalid: What happens to records that can't be used: left out and counted, or the run ends.
        too_long: The same for records over the length limits (truncation is the encoder's).
        max_invalid: The share of records that may be left out as unusable.
        repeats: What happens to records that occur again or contradict each other.
    """

    source: Source
    convert: Callable[[Row], list[Record]]
    encoder: Encoder
    shape: Shape
    invalid: InvalidPolicy = "drop"
    too_long: LengthPolicy = "drop"
    max_invalid: float = 1.0
    repeats: Repeats = field(default_factory=Repeats)
    report: Report = field(init=False)
    _required: list[str] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.report = Report(str(self.source), self.shape.unit, refuses=self.repeats.refused())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Tokenize the rows in order, many with one call of the tokenizer.

        Raises:
            DataError: Rows were left out against the policies, or none is left.
            ConfigurationError: The format gives records of another shape.
        """
        numbered = enumerate(rows_of(self.source))
        conversion = Conversion(self.source, self.convert, self.shape)
        weed = RepeatFinder(self.repeats, self.source, conversion)
        while rows := list(islice(numbered, _ROWS_AT_ONCE)):
            attempts = [
                (number, weed(number, a)) for number, row in rows for a in conversion(number, row)
            ]
            encoded = iter(self.encoder.encode([a for _, a in attempts if isinstance(a, Record)]))
            self.report.rows += sum(len(rows_of_group(row)) for _, row in rows)
            for number, attempt in attempts:
                try:
                    if isinstance(attempt, InvalidRowError):
                        raise attempt
                    yield {"row": number, **self._settle(attempt, next(encoded))}
                except InvalidRowError as error:
                    self.report.leave_out(self.source.locate(number), error)
        self.report.cut_prompts = self.encoder.cut_prompts
        self.report.judge(self.invalid, self.too_long, self.max_invalid)

    def _settle(self, record: Record, encoded: Encoded | InvalidRowError) -> dict[str, Any]:
        if isinstance(encoded, InvalidRowError):
            raise encoded
        prompt, completions, cut = encoded
        check_identical(record, completions, "tokens (after truncation)")
        extras = _to_json(record)
        self._count(record)
        lengths = [len(ids) for ids in completions]
        self.report.records += 1
        for what in cut:
            self.report.truncated[what] = self.report.truncated.get(what, 0) + 1
        self.report.count_prompt(record.prompt)
        self.report.longest_prompt = max(self.report.longest_prompt, len(prompt))
        self.report.longest_completion = max(self.report.longest_completion, *lengths, 0)
        return {
            "prompt_key": stable_hash(record.prompt_key()),
            "length": len(prompt) + sum(lengths),
            "prompt_ids": prompt,
            "completion_ids": completions,
            "extras": extras,
        }

    def _count(self, record: Record) -> None:
        """Which fields and columns there are: all records have the same, but for optional ones."""
        required = required_fields(record.fields, len(record.completions))
        if self._required is None:
            self._required = required
        if required != self._required:
            raise InvalidRowError(
                "fields differ from the first row's",
                f"{required}; the first row's are {self._required}",
            )
        for name in record.fields:
            if name in OPTIONAL_FIELDS:
                self.report.optional[name] = self.report.optional.get(name, 0) + 1
        if record.columns.keys() - self.report.columns:
            self.report.columns = sorted({*self.report.columns, *record.columns})
        if "label" in record.fields:
            label = str(record.fields["label"])
            self.report.labels[label] = self.report.labels.get(label, 0) + 1


def _to_json(record: Record) -> str:
    extras: dict[str, Any] = {"fields": dict(record.fields), "columns": dict(record.columns)}
    if not record.completions:  # rewards read the prompt as it came
        extras["given"] = record.prompt
    try:
        return json.dumps(extras)
    except (TypeError, ValueError, RecursionError) as error:
        kinds = {name: type(value).__name__ for name, value in record.columns.items()}
        raise InvalidRowError(
            "column can't be carried",
            f"{error}; text, numbers, lists and dictionaries can be, these are {kinds}",
        ) from error
