"""From a source to tokenized rows, with a count of what was left out and why."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lit_rlhf.data.asking import Asking, together
from lit_rlhf.data.encoding import Encoded, Encoder
from lit_rlhf.data.records import InvalidRowError, Record, Row, Text, TooLongError
from lit_rlhf.data.sources import Source
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.seeding import stable_hash

InvalidPolicy = Literal["drop", "error"]
LengthPolicy = Literal["drop", "truncate", "error"]
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Shape:
    """What records must look like for a kind of batch.

    Args:
        completions: How many completions, at least and at most (None: any number).
        one_of: Fields of which a record must have exactly one. Empty: no such condition.
    """

    completions: tuple[int, int | None]
    one_of: tuple[str, ...] = ()


@dataclass
class Reason:
    """How many rows were left out for a reason, and the first of them."""

    count: int
    first: str
    option: str


@dataclass
class Report:
    """What became of the rows of a source.

    Args:
        source: What messages call it.
        rows: Rows read.
        records: Records made of them (a format may make several of one row).
        reasons: Rows left out, by reason.
        cut_prompts: Conversations whose prompt the chat template renders otherwise once an answer follows.
        longest_prompt: In tokens.
        longest_completion: In tokens.
    """

    source: str
    rows: int = 0
    records: int = 0
    reasons: dict[str, Reason] = field(default_factory=dict)
    cut_prompts: int = 0
    longest_prompt: int = 0
    longest_completion: int = 0

    def leave_out(self, where: str, error: InvalidRowError) -> None:
        """Count a row."""
        option = "too_long" if isinstance(error, TooLongError) else "invalid"
        reason = self.reasons.setdefault(
            error.reason, Reason(0, f"{where}: {error.detail}", option)
        )
        reason.count += 1

    @property
    def counts(self) -> dict[str, int]:
        """Rows left out, by reason."""
        return {name: reason.count for name, reason in self.reasons.items()}

    def summary(self) -> str:
        """The report in one line per reason."""
        used = f"{self.source}: {self.rows - sum(self.counts.values())} of {self.rows} rows used"
        lines = [
            f"{reason.count} left out, {name} (first: {reason.first})"
            for name, reason in self.reasons.items()
        ]
        if self.cut_prompts:
            lines.append(
                f"{self.cut_prompts} prompts are cut to what the chat template renders alike with and without an "
                "answer; rollouts from them would begin with other tokens"
            )
        return "; ".join([used, *lines])

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the cache."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Report":
        """The inverse of `to_json`."""
        reasons = {name: Reason(**reason) for name, reason in values["reasons"].items()}
        return cls(**{**values, "reasons": reasons})


@dataclass
class Attempt:
    """What comes of a row.

    Args:
        records: What the format made of it.
        tokenized: Those records, up to the first that can't be used.
        error: Why the row can't be used.
    """

    records: list[Record] = field(default_factory=list)
    tokenized: list[dict[str, Any]] = field(default_factory=list)
    error: Exception | None = None


@dataclass
class Preparation:
    """Reads, converts, checks and tokenizes a source; iterating over it yields rows for the cache and fills `report`.

    Args:
        source: Where rows come from.
        convert: Turns a raw row into records.
        encoder: Tokenizes records.
        shape: What records must look like.
        invalid: What happens to rows that can't be used: left out and counted, or the run ends.
        too_long: The same for rows over the length limits (truncation is the encoder's).
    """

    source: Source
    convert: Callable[[Row], list[Record]]
    encoder: Encoder
    shape: Shape
    invalid: InvalidPolicy
    too_long: LengthPolicy
    report: Report = field(init=False)
    _names: tuple[frozenset[str], frozenset[str]] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.report = Report(str(self.source))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Tokenize the rows in order, many with one call of the tokenizer.

        Raises:
            DataError: Rows were left out against the policies, or none is left.
            ConfigurationError: The format gives records of another shape.
        """
        for number, attempt in enumerate(self._attempts()):
            self.report.rows += 1
            try:
                rows = self._settle(attempt)
            except InvalidRowError as error:
                self.report.leave_out(self.source.locate(number), error)
                continue
            except (TypeError, LookupError, AttributeError) as error:  # of a format of one's own
                error.add_note(
                    f"This was {self.source.locate(number)}. A row that can't be used: InvalidRowError."
                )
                raise
            for tokenized in rows:
                self._measure(tokenized)
                yield {"row": number, **tokenized}
        self.report.cut_prompts = self.encoder.cut_prompts
        self._conclude()

    def _attempts(self) -> Iterator[Attempt]:
        for portion in _portions(self._convert(row) for row in self.source.load()):
            yield from together(
                self.encoder.tokenizer, [self._tokenize_all(attempt) for attempt in portion]
            )

    def _convert(self, row: Row) -> Attempt:
        try:
            return Attempt(self._records(row))
        except Exception as error:  # noqa: BLE001  (raised when all rows before this one are settled)
            return Attempt(error=error)

    def _tokenize_all(self, attempt: Attempt) -> Asking[Attempt]:
        try:
            for record in attempt.records:
                attempt.tokenized.append((yield from self._tokenize(record)))
        except Exception as error:  # noqa: BLE001  (as above)
            attempt.error = error
        return attempt

    def _settle(self, attempt: Attempt) -> list[dict[str, Any]]:
        for record, _ in zip(attempt.records, attempt.tokenized, strict=False):
            self._same_names(record)
        if attempt.error is not None:
            raise attempt.error
        return attempt.tokenized

    def _records(self, row: Row) -> list[Record]:
        records = self.convert(row)
        low, high = self.shape.completions
        for record in records:
            count = len(record.completions)
            if count < low or (high is not None and count > high):
                wanted = f"{low}" if low == high else f"{low} or more"
                raise ConfigurationError(
                    f"The format gives records with {count} completions, this DataModule needs {wanted}. Set `format` "
                    "to one that fits it (see lit_rlhf.data.formats), or take the DataModule that fits the format."
                )
            if self.shape.one_of and sum(name in record.fields for name in self.shape.one_of) != 1:
                raise ConfigurationError(
                    f"The format gives records with the fields {sorted(record.fields)}, this DataModule needs one of "
                    f"{list(self.shape.one_of)}. Set `format` to one that gives it."
                )
        return records

    def _tokenize(self, record: Record) -> Asking[dict[str, Any]]:
        for completion in record.completions:
            if _is_empty(completion):
                raise InvalidRowError("empty completion", "a completion has no text")
        encoded = yield from self.encoder.encode(record)
        if not record.steps:
            _refuse_identical(encoded)
        extras = _to_json(record)
        return {
            "prompt_key": stable_hash(record.prompt_key()),
            "length": len(encoded.prompt) + sum(len(ids) for ids in encoded.completions),
            "prompt_ids": encoded.prompt,
            "completion_ids": encoded.completions,
            "extras": extras,
        }

    def _same_names(self, record: Record) -> None:
        names = frozenset(record.fields), frozenset(record.columns)
        if self._names is None:
            self._names = names
        if names != self._names:
            wanted, found = (sorted(pair[0] | pair[1]) for pair in (self._names, names))
            raise InvalidRowError(
                "columns differ from the first row's", f"{found}; the first row's are {wanted}"
            )

    def _measure(self, tokenized: dict[str, Any]) -> None:
        self.report.records += 1
        self.report.longest_prompt = max(self.report.longest_prompt, len(tokenized["prompt_ids"]))
        longest = max((len(ids) for ids in tokenized["completion_ids"]), default=0)
        self.report.longest_completion = max(self.report.longest_completion, longest)

    def _conclude(self) -> None:
        policies = {"invalid": self.invalid, "too_long": self.too_long}
        refused = {
            reason.option
            for reason in self.report.reasons.values()
            if policies[reason.option] == "error"
        }
        if refused:
            ways = {"invalid": "invalid: drop", "too_long": "too_long: drop or too_long: truncate"}
            hint = " and ".join(ways[option] for option in sorted(refused))
            raise DataError(f"{self.report.summary()}. Mend the rows, or set {hint}.")
        if self.report.records == 0:
            way = "mend the rows, the `format` or the limits"
            if self.report.reasons and all(
                name.startswith("no column") for name in self.report.reasons
            ):
                way = "name the data's columns in the options of `format`, or take another format"
            raise DataError(f"{self.report.summary()}. Nothing is left: {way}.")


def _portions(attempts: Iterable[Attempt]) -> Iterator[list[Attempt]]:
    portion: list[Attempt] = []
    try:
        for attempt in attempts:
            portion.append(attempt)
            if len(portion) == _ROWS_AT_ONCE:
                yield portion
                portion = []
    except Exception:  # the source's: what is wrong with rows before comes first
        yield portion
        raise
    if portion:
        yield portion


def _is_empty(completion: Text) -> bool:
    if isinstance(completion, str):
        return not completion.strip()
    # A turn that calls a tool has no content, but further keys.
    return all(
        set(turn) <= {"role", "content"} and not str(turn["content"] or "").strip()
        for turn in completion
    )


def _refuse_identical(encoded: Encoded) -> None:
    completions = encoded.completions
    if len(completions) > 1 and all(ids == completions[0] for ids in completions[1:]):
        name = "identical pair" if len(completions) == 2 else "identical completions"
        raise InvalidRowError(
            name, f"all completions have the same {len(completions[0])} tokens (after truncation)"
        )


def _to_json(record: Record) -> str:
    try:
        return json.dumps(
            {"fields": dict(record.fields), "columns": dict(record.columns)}, allow_nan=True
        )
    except (TypeError, ValueError) as error:
        kinds = {name: type(value).__name__ for name, value in record.columns.items()}
        raise InvalidRowError(
            "column can't be carried",
            f"{error}; text, numbers, lists and dictionaries can be, these are {kinds}",
        ) from error
