"""From a source to tokenized rows, with a count of what was left out and why."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, NamedTuple

from lightning.pytorch.utilities import rank_zero_only

from lit_rlhf.data.conversion import Conversion, Shape, Source, check_identical, rows_of
from lit_rlhf.data.encoding import Encoded, Encoder, LengthPolicy
from lit_rlhf.data.records import (
    OPTIONAL_FIELDS,
    InvalidRowError,
    LabelError,
    Record,
    Row,
    Text,
    required_fields,
    rows_of_group,
)
from lit_rlhf.data.repeats import Identity, RepeatFinder, Repeats
from lit_rlhf.errors import DataError
from lit_rlhf.seeding import stable_hash

InvalidPolicy = Literal["drop", "error"]
_ROWS_AT_ONCE = 512
_MOST_COMPARED = 1_000_000
"""Pairs and labelled answers of which contradictions are counted: some 100 bytes of memory each."""
_SUMMED = (
    *("optional", "labels", "truncated", "rows", "records", "chats"),
    *("cut_prompts", "contradicting"),
)
"""What of the reports of several sources is added up."""
_log = logging.getLogger(__name__)


@dataclass
class Reason:
    """How many were left out for a reason, the first of them, and the option that says what happens then."""

    count: int
    first: str
    option: str
    label: bool = False  # it is the label that can't be read


@dataclass
class Report:
    """What became of the rows of a source.

    Counts are of records: where a format makes several of a row, each is used or left out by itself, and a row that
    gives none counts as one that is left out. So `records` and the counts add up to all there is.

    Args:
        source: What messages call it.
        unit: What a record is called, in the plural.
        rows: Rows read.
        records: Records used.
        reasons: Those left out, by reason.
        optional: How many records have an optional field, by its name.
        columns: The further columns of all records.
        labels: How many records have a label, by its value.
        chats: How many records have messages for a prompt.
        systems: Their different system turns, "" for none; two at most.
        truncated: How many records had their prompt or an answer cut to a limit, by which of these.
        cut_prompts: Conversations whose prompt the chat template renders otherwise once an answer follows.
        contradicting: Pairs that prefer the answer which an earlier one rejects, and labels that differ so.
        longest_prompt: In tokens.
        longest_completion: In tokens.
        refuses: Options by which records, where there are any, end the run (see `Repeats`).
    """

    source: str
    unit: str = "records"
    rows: int = 0
    records: int = 0
    reasons: dict[str, Reason] = field(default_factory=dict)
    optional: Counter[str] = field(default_factory=Counter)
    columns: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    chats: int = 0
    systems: list[str] = field(default_factory=list)
    truncated: Counter[str] = field(default_factory=Counter)
    cut_prompts: int = 0
    contradicting: int = 0
    longest_prompt: int = 0
    longest_completion: int = 0
    refuses: list[str] = field(default_factory=list)

    def leave_out(self, where: str, error: InvalidRowError) -> None:
        """Count one."""
        label = isinstance(error, LabelError)
        first = Reason(0, f"{where}: {error.detail}", error.option, label)
        self.reasons.setdefault(error.reason, first).count += 1

    def count_prompt(self, prompt: Text) -> None:
        """Count how a prompt is written."""
        if isinstance(prompt, str):
            return
        self.chats += 1
        system = str(prompt[0]["content"]) if prompt[0]["role"] in ("system", "developer") else ""
        if len(self.systems) < 2 and system not in self.systems:
            self.systems.append(system)

    @property
    def counts(self) -> dict[str, int]:
        """Records left out, by reason."""
        return {name: reason.count for name, reason in self.reasons.items()}

    def brief(self) -> str:
        """What was used, how many were left out by reason, and how many were cut."""
        left_out = [f"{count} left out, {name}" for name, count in self.counts.items()]
        return "; ".join([self._used(), *left_out, *self._cut()])

    def _cut(self) -> list[str]:
        return [
            f"{count} {self.unit} have their {what} cut" for what, count in self.truncated.items()
        ]

    def _used(self) -> str:
        total = self.records + sum(self.counts.values())
        unit = "rows" if total == self.rows else f"{self.unit} of {self.rows} rows"
        return f"{self.source}: {self.records} of {total} {unit} used"

    def summary(self) -> str:
        """The report in one line per reason."""
        lines = [self._used()]
        lines += [
            f"{reason.count} left out, {name} (first: {reason.first})"
            for name, reason in self.reasons.items()
        ]
        lines += [
            f"{self.records - count} have no {name}, {OPTIONAL_FIELDS[name]:g} is taken"
            for name, count in self.optional.items()
            if count < self.records
        ]
        lines += self._cut()
        if self.contradicting:
            lines.append(
                f"{self.contradicting} say the opposite of an earlier one (repeats.contradicting: drop leaves out both "
                "sides, lit-rlhf data inspect shows them)"
            )
        if self.cut_prompts:
            lines.append(
                f"{self.cut_prompts} prompts are cut to what the chat template renders alike with and without an "
                "answer; rollouts from them would begin with other tokens"
            )
        return "; ".join(lines)

    def judge(self, invalid: InvalidPolicy, too_long: LengthPolicy, max_invalid: float) -> None:
        """End the run where more was left out than the options allow.

        Args:
            invalid: Whether records that can't be used may be left out.
            too_long: The same for those over the length limits.
            max_invalid: The share of records that can't be used that may be left out.

        Raises:
            DataError: They may not, nothing is left, or of the labels one class alone is left.
        """
        policies = {
            "invalid": invalid,
            "too_long": too_long,
            **dict.fromkeys(self.refuses, "error"),
        }
        left = {reason.option for reason in self.reasons.values()}
        refused = sorted(option for option in left if policies.get(option) == "error")
        if refused:
            ways = {"invalid": "invalid: drop", "too_long": "too_long: drop or too_long: truncate"}
            hint = " and ".join(ways.get(o, f"repeats.{o}: drop or keep") for o in refused)
            raise DataError(f"{self.summary()}. Mend the rows, or set {hint}.")
        way = "mend the rows, the `format` or the limits"
        if self.reasons and all(name.startswith("no column") for name in self.reasons):
            way = "name the data's columns in the options of `format`, or take another format"
        if self.rows == 0:
            way = "the source holds no rows. `load` of one of your own must begin anew at each call"
        if self.records == 0:
            raise DataError(f"{self.summary()}. Nothing is left: {way}.")
        unusable = sum(r.count for r in self.reasons.values() if r.option == "invalid")
        share = unusable / (self.records + unusable)
        if share > max_invalid:
            raise DataError(
                f"{self.summary()}. {share:.0%} can't be used, more than max_invalid ({max_invalid:.0%}) allows: "
                f"{way}, or raise max_invalid if this is what the data are like."
            )
        if len(self.labels) == 1 and any(reason.label for reason in self.reasons.values()):
            raise DataError(
                f"{self.summary()}. All labels that could be read are {next(iter(self.labels))}, "
                "so one class is left out: "
                "labels are true or false, 1 or 0, or 1 or -1. Write them so, or give numbers as the option `score`."
            )

    @classmethod
    def of_all(cls, reports: Sequence["Report"]) -> "Report":
        """One report of several sources, itself of one; `source` says how much each gave."""
        if len(reports) == 1:
            return reports[0]
        whole = cls(
            " + ".join(f"{r.source} ({r.records} {r.unit})" for r in reports),
            reports[0].unit,
            refuses=reports[0].refuses,
        )
        for report in reports:
            for name, reason in report.reasons.items():
                whole.reasons.setdefault(name, replace(reason, count=0)).count += reason.count
            for name in _SUMMED:
                setattr(whole, name, getattr(whole, name) + getattr(report, name))
            for name in ("longest_prompt", "longest_completion"):
                setattr(whole, name, max(getattr(whole, name), getattr(report, name)))
            whole.columns = sorted({*whole.columns, *report.columns})
            whole.systems = [*dict.fromkeys([*whole.systems, *report.systems])][:2]
        return whole

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the cache."""
        reasons = {name: vars(reason) for name, reason in self.reasons.items()}
        return {**vars(self), "reasons": reasons}

    @classmethod
    def from_json(cls, values: dict[str, Any], source: str) -> "Report":
        """The inverse of `to_json`.

        Args:
            values: What it gave.
            source: What the source is called now: rows in the cache may come from a file that lay elsewhere.
        """
        before = values["source"]
        reasons = {name: Reason(**reason) for name, reason in values["reasons"].items()}
        for reason in reasons.values():
            if reason.first.startswith(before):
                reason.first = source + reason.first.removeprefix(before)
        counters = {name: Counter(values[name]) for name in ("optional", "labels", "truncated")}
        return cls(**{**values, **counters, "reasons": reasons, "source": source})


class Attempt(NamedTuple):
    """A record with its tokens, or why it can't be used.

    Attributes:
        number: Of its row in the source, counted from 0.
        place: Which of the row's records it is, counted from 0.
        row: Its row.
        record: The record, or the error.
        encoded: Its tokens; None without an encoder.
    """

    number: int
    place: int
    row: Row
    record: Record | InvalidRowError
    encoded: Encoded | None

    def sound(self) -> tuple[Record, Encoded | None]:
        """The record and its tokens.

        Raises:
            InvalidRowError: It can't be used.
        """
        if isinstance(self.record, InvalidRowError):
            raise self.record
        return self.record, self.encoded


def attempts(
    conversion: Conversion,
    encoder: Encoder | None,
    report: Report,
    weed: RepeatFinder | None = None,
) -> Iterator[Attempt]:
    """Convert and tokenize the rows of a source in order, many with one call of the tokenizer.

    Args:
        conversion: Of the source's rows.
        encoder: Makes tokens. None: there are none.
        report: Its rows are counted.
        weed: Puts errors in the place of records that are repeated.
    """
    numbered = enumerate(rows_of(conversion.source))
    while rows := list(islice(numbered, _ROWS_AT_ONCE)):
        report.rows += sum(len(rows_of_group(row)) for _, row in rows)
        found = [
            (number, place, row, weed(number, each) if weed else each)
            for number, row in rows
            for place, each in enumerate(conversion(number, row))
        ]
        records = [each for *_, each in found if isinstance(each, Record)]
        encoded = iter(encoder.encode(records) if encoder else [None] * len(records))
        for number, place, row, each in found:
            tokens = None if isinstance(each, InvalidRowError) else next(encoded)
            if isinstance(tokens, InvalidRowError):
                yield Attempt(number, place, row, tokens, None)
            else:
                yield Attempt(number, place, row, each, tokens)


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
        repeats: What happens to records that occur again or contradict each other. None: they are kept.
    """

    source: Source
    convert: Callable[[Row], list[Record]]
    encoder: Encoder
    shape: Shape
    invalid: InvalidPolicy = "drop"
    too_long: LengthPolicy = "drop"
    max_invalid: float = 1.0
    repeats: Repeats | None = None
    report: Report = field(init=False)
    _required: list[str] | None = field(default=None, init=False)
    _ways: dict[int, bool] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        refuses = [] if self.repeats is None else self.repeats.refused()
        self.report = Report(str(self.source), self.shape.unit, refuses=refuses)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Tokenize the rows in order, many with one call of the tokenizer.

        Raises:
            DataError: Rows were left out against the policies, or none is left.
            ConfigurationError: The format gives records of another shape.
        """
        conversion = Conversion(self.source, self.convert, self.shape)
        weed = None
        if self.repeats is not None:
            weed = RepeatFinder(self.repeats, self.source, conversion)
        for each in attempts(conversion, self.encoder, self.report, weed):
            try:
                yield {"row": each.number, **self._settle(*each.sound())}
            except InvalidRowError as error:
                self.report.leave_out(self.source.locate(each.number), error)
        self.report.cut_prompts = self.encoder.cut_prompts
        self.report.judge(self.invalid, self.too_long, self.max_invalid)

    def _settle(self, record: Record, encoded: Encoded | None) -> dict[str, Any]:
        assert encoded is not None
        prompt, completions, cut = encoded
        check_identical(record, completions, "tokens (after truncation)")
        extras = _to_json(record)
        self._count(record)
        lengths = [len(ids) for ids in completions]
        self.report.records += 1
        self.report.truncated.update(cut)
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
        self.report.optional.update(OPTIONAL_FIELDS.keys() & record.fields.keys())
        if record.columns.keys() - self.report.columns:
            self.report.columns = sorted({*self.report.columns, *record.columns})
        if "label" in record.fields:
            self.report.labels[str(record.fields["label"])] += 1
        if len(record.completions) <= 2 and len(self._ways) < _MOST_COMPARED:
            for key, way in Identity(record).comparisons():
                self.report.contradicting += self._ways.setdefault(key, way) != way


@rank_zero_only
def say(report: Report) -> None:
    """Log a report, as a warning where something was left out."""
    notable = report.reasons or report.truncated or report.cut_prompts or report.contradicting
    level = logging.WARNING if notable else logging.INFO
    _log.log(level, "%s", report.summary())


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
            f"{error}; text, numbers, lists and dictionaries can be, these are {kinds}. Carry those alone that the "
            "rewards read: format PromptOnly, with their names as its columns",
        ) from error
