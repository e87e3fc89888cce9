"""From raw rows to records: what a source and a format are, which neighbours are read as one, checks of what is made.

What can't be used stays as an error.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, ClassVar, Literal

from lit_rlhf.data.records import (
    InvalidRowError,
    Record,
    Row,
    RowGroup,
    UnreadableRow,
    check_number,
    rows_of_group,
    shorten,
    without_missing,
)
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.options import check_option, is_text

_MOST_NEIGHBOURS = 512  # so that a column that never changes doesn't bring a whole file into memory
SUBSET = "subset"
"""The column that says which part of a data set a row belongs to: metrics are also told by it."""
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
"""What of a row goes to the chat template: lists and dictionaries, or their JSON."""
Style = Literal["text", "turns", "transcript"]


class Source(ABC):
    """One split of a data set: rows, and a fingerprint of their content.

    A new kind of source overrides `load`, and `fingerprint` where hashing all rows at each start would be slow.
    """

    @abstractmethod
    def load(self) -> Iterable[Mapping[str, Any]]:
        """Go through the rows, in the same order each time; for one that can't be read, give an `UnreadableRow`."""

    def fingerprint(self) -> str:
        """Hash the content: equal content, equal fingerprint, wherever it lies."""
        digest = hashlib.sha256()
        for row in self.load():
            content = [row.error.reason] if isinstance(row, UnreadableRow) else row
            try:
                text = json.dumps(content, sort_keys=True, default=repr)
            except (TypeError, ValueError, RecursionError):  # keys of several types; a circle
                text = shorten(content, limit=1_000_000)
            digest.update(text.encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def cache_key(self) -> str:
        """What the cache of tokens goes by where a source is an option of something else."""
        return self.fingerprint()

    def locate(self, row: int) -> str:
        """Say where a row is, for error messages.

        Args:
            row: Counted from 0.
        """
        return f"{self}, row {row + 1}"

    def __str__(self) -> str:
        """What messages call the source."""
        return type(self).__name__


def rows_of(source: Source) -> Iterator[Mapping[str, Any]]:
    """Go through the rows of a source.

    Raises:
        ConfigurationError: A source of one's own gives something else than rows.
        DataError: The system refuses, or what is read ends too early.
    """
    try:
        given: object = source.load()
        for row in given if isinstance(given, Iterable) else [given]:
            if not isinstance(row, Mapping):
                raise ConfigurationError(
                    f"{type(source).__name__}.load gave {shorten(row)}: it must give rows one after the other, each a "
                    "mapping from column to value."
                )
            yield row
    except (OSError, EOFError) as error:
        raise DataError(f"{source} can't be read: {error}.") from error


class Format(ABC):
    """Turns a raw row into records.

    The cache of tokens goes by the options that a format declares (the fields of a dataclass, else the arguments of its
    constructor, kept under their names) and by its code. A class attribute `version` stands for the code: whoever
    states one changes it with what the format gives. A method `cache_key` that gives plain values replaces both.

    Where a DataModule is given no format, or `Auto`, it takes the one that reads the first rows: see `recognises`.
    """

    style: ClassVar[Style] = "text"
    """What its plain text is: text as it stands; turns, a user's question and an assistant's answers; or a transcript
    of several turns with markers. By it, a recognised format is read as the conversation that it is."""
    weak: ClassVar[bool] = False
    """Whether it gives way to every other format that reads the same rows."""

    @classmethod
    def candidates(cls) -> "Sequence[Format]":
        """The ways of reading to try where no format is set."""
        return (cls(),)

    def reads(self) -> tuple[str, ...]:
        """The columns that it can't do without. A format that reads more columns of the rows is the better reading."""
        return ()

    def groups_by(self) -> str | None:
        """The column whose equal values make neighbouring rows a `RowGroup`, converted as one; None: rows alone."""
        return None

    def votes(self, row: Row) -> Sequence[float]:
        """What single raters said of a row: above 0 for the completion that its record has first, below for the other.

        Empty where the data don't have it. What can't be read as a vote is left out: nothing is learned from them.
        """
        return ()

    def recognises(self, rows: Sequence[Row]) -> bool:
        """Whether rows are of this format: at least half of them can be converted.

        Args:
            rows: The first rows of a source, grouped by `groups_by`.
        """
        return 2 * sum(map(self.reads_row, rows)) >= len(rows)

    def reads_row(self, row: Row) -> bool:
        """Whether a row has the columns and can be converted."""
        try:
            return all(name in row for name in self.reads()) and bool(self(row))
        except (InvalidRowError, ConfigurationError, TypeError, LookupError, AttributeError):
            return False

    @property
    def innermost(self) -> "Format":
        """Itself, or of a format around another one the one within."""
        return self

    @abstractmethod
    def __call__(self, row: Row) -> list[Record]:
        """Convert a row.

        Raises:
            InvalidRowError: The row can't be used.
        """


@dataclass(frozen=True)
class Columns(Format):
    """A format whose options name columns, and may say yes or no.

    Raises:
        ConfigurationError: One is no name, or neither yes nor no.
    """

    needed: ClassVar[tuple[str, ...]] = ()
    """The options that name the columns which it can't do without."""

    def reads(self) -> tuple[str, ...]:
        """The columns that `needed` stands for."""
        return tuple(getattr(self, option) for option in self.needed)

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if option.type in (str, "str", str | None, "str | None"):
                allowed = "text that is not empty"
                named = isinstance(value, str) and bool(value or option.name == "separator")
                optional = value is None and option.type not in (str, "str")
                if optional or option.type not in (str, "str"):
                    allowed += ", or null"
                check_option(named or optional, self, option.name, value, allowed)
            elif option.type in (bool, "bool"):
                check_option(isinstance(value, bool), self, option.name, value, "true or false")


def check_columns(owner: Format, columns: object) -> None:
    """Refuse names of further columns that are none.

    Raises:
        ConfigurationError: They are no list of names.
    """
    names = [] if columns is None else columns
    valid = isinstance(names, list | tuple) and all(map(is_text, names))
    check_option(valid, owner, "columns", columns, "a list of names or left out")


def rates_all(rated: Format, plain: Format, rows: Sequence[Row]) -> bool:
    """Whether rows have equally many ratings each: a batch can't hold others, and they would be left out.

    Args:
        rated: Reads the field `attributes`.
        plain: Reads the same rows without it.
        rows: The first rows of a source.
    """
    counts = {
        len(rated(row)[0].fields["attributes"]) if rated.reads_row(row) else 0  # type: ignore[arg-type]
        for row in rows
        if plain.reads_row(row)
    }
    return len(counts) == 1


@dataclass(frozen=True)
class Shape:
    """What records must look like for a kind of batch.

    Args:
        completions: How many completions, at least and at most (None: any number).
        one_of: Fields of which a record must have exactly one. Empty: no such condition.
        fields: Further fields that a record may have.
        unit: What a record is called, in the plural.
    """

    completions: tuple[int, int | None]
    one_of: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    unit: str = "records"


@dataclass(frozen=True)
class Conversion:
    """Turns rows into records that are checked.

    Args:
        source: Where the rows come from, for messages.
        convert: Turns a raw row into records: a format, or `records` of a DataModule.
        shape: What the records must look like.
    """

    source: Source
    convert: Callable[[Row], list[Record]]
    shape: Shape

    def __iter__(self) -> Iterator[Record]:
        """The records of all rows that can be used."""
        for number, row in enumerate(rows_of(self.source)):
            yield from (each for each in self(number, row) if isinstance(each, Record))

    def __call__(self, number: int, row: Row) -> list[Record | InvalidRowError]:
        """The records of a row, and errors in place of those that can't be used.

        Args:
            number: Of the row in its source, counted from 0.
            row: The row.

        Raises:
            DataError: A format that reads files can't read one.
            ConfigurationError: The format gives records of another shape.
        """
        try:
            made: Any = self.convert(row)
            records = list(made or ()) if isinstance(made, Iterable) or made is None else [made]
            if not records:
                return [InvalidRowError("the format makes no record of it", shorten(dict(row)))]
            if not isinstance(made, Iterable) or not all(isinstance(r, Record) for r in records):
                raise ConfigurationError(
                    f"The format made {shorten(made)} of {self.source.locate(number)}: it must make a list of Record."
                )
            template = {} if isinstance(row, UnreadableRow) else template_options(row)
            return [_named(self._check(record, template), row) for record in records]
        except InvalidRowError as error:
            return [error]
        except OSError as error:  # of a format that reads files
            raise DataError(f"{self.source.locate(number)} can't be read: {error}.") from error
        except (TypeError, LookupError, AttributeError) as error:  # of a format of one's own
            error.add_note(
                f"This was {self.source.locate(number)}. A row that can't be used: InvalidRowError."
            )
            raise

    def _check(self, record: Record, template: Row) -> Record | InvalidRowError:
        low, high = self.shape.completions
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
        unknown = record.fields.keys() - {*self.shape.fields, *self.shape.one_of}
        if unknown:
            raise ConfigurationError(
                f"The format gives records with the fields {sorted(unknown)}, which this DataModule would not read: "
                "scores and labels say which completion is better. Take the DataModule that fits the format, or a "
                "format that fits this DataModule (such as PairsFromRanking for pairs of rankings)."
            )
        if record.fields:
            record = replace(record, fields=_checked_fields(record.fields))
        _require_text("prompt", record.prompt)
        for completion in record.completions:
            _require_text("completion", completion)
            # A turn that calls a tool has no content, but further keys.
            turns = [{"content": completion}] if isinstance(completion, str) else completion
            plain = all(turn.keys() <= {"role", "content"} for turn in turns)
            if plain and not any(str(turn["content"]).strip() for turn in turns):
                return InvalidRowError("empty completion", "a completion has no text")
        carried = isinstance(record.prompt, str) and bool(record.columns)  # they reach the rewards
        if template and record.template is None and not carried:
            return replace(record, template=template)
        return record


def _require_text(what: str, value: object) -> None:
    turns = isinstance(value, list | tuple) and all(isinstance(turn, Mapping) for turn in value)
    if not turns and not isinstance(value, str):
        raise InvalidRowError(
            f"the format's {what} is neither text nor messages", f"got {shorten(value)}"
        )


def _checked_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Finite numbers and booleans, as which batches hold them; those of numpy and of text become plain ones."""

    def plain(name: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(plain(name, item) for item in value)
        low, high = (0.0, 1.0) if name == "p_chosen" else (-math.inf, math.inf)
        number = check_number(value, name, low, high)
        return value if type(value) in (bool, int, float) else number

    return {name: plain(name, value) for name, value in fields.items()}


def check_identical(record: Record, completions: Sequence[Sequence[object]], unit: str) -> None:
    """Refuse a record whose completions are all the same: there is nothing to learn from it.

    Args:
        record: The record.
        completions: Its completions.
        unit: What they are made of.

    Raises:
        InvalidRowError: They are the same.
    """
    several = len(completions) > 1 and not record.steps
    if several and all(other == completions[0] for other in completions):
        name = "identical pair" if len(completions) == 2 else "identical completions"
        raise InvalidRowError(name, f"all completions have the same {len(completions[0])} {unit}")


def _named(record: Record | InvalidRowError, row: Row) -> Record | InvalidRowError:
    """A record of answers, with the subset that its row names."""
    if isinstance(record, InvalidRowError) or not record.completions:
        return record
    subset = row.get(SUBSET)
    if not isinstance(subset, str | int):
        return record
    return replace(record, columns={**record.columns, SUBSET: str(subset)})


def template_options(row: Row) -> dict[str, Any]:
    """What a row gives the chat template beside the messages: `tools`, and the keys of `chat_template_kwargs`."""
    options: dict[str, Any] = {}
    for column in TEMPLATE_COLUMNS:
        value = row.get(column)
        if isinstance(value, str):
            try:
                value = json.loads(value) if value.strip() else None
            except ValueError:
                raise InvalidRowError(
                    f"column {column!r} is no JSON", f"got {shorten(value)}"
                ) from None
        if not value:
            continue
        value = without_missing(value)
        kind = list if column == "tools" else dict
        if not isinstance(value, kind):
            raise InvalidRowError(
                f"column {column!r} can't be given to the chat template",
                f"got {type(value).__name__} {shorten(value)}, it must be a {kind.__name__}",
            )
        options |= {"tools": value} if column == "tools" else value
    return options


def group_rows(rows: Iterable[Row], reader: Format) -> Iterator[Row]:
    """Rows as a format reads them: neighbours that belong together as a `RowGroup`.

    A group has 512 rows at most. What can't be read, or lacks the column, stands alone.

    Example:
        >>> from lit_rlhf.data.formats import HelpSteer2Pairs
        >>> rows = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "c"}]
        >>> [len(group.rows) for group in group_rows(rows, HelpSteer2Pairs())]
        [2]
    """
    column = reader.groups_by()
    if column is None:
        yield from rows
        return
    numbered = enumerate(rows)
    for _, found in groupby(numbered, key=lambda pair: _key(pair[0], pair[1], column)):
        group = [row for _, row in found]
        if isinstance(group[0], UnreadableRow):
            yield group[0]
        else:
            for start in range(0, len(group), _MOST_NEIGHBOURS):
                yield RowGroup(group[start : start + _MOST_NEIGHBOURS])


def _key(number: int, row: Row, column: str) -> tuple[int, Any]:
    """Equal for rows that belong together; a number, which no other row has, for those that stand alone."""
    alone = isinstance(row, UnreadableRow) or row.get(column) is None
    return (number, None) if alone else (-1, row[column])


class _GroupedSource(Source):
    """The rows of a source, neighbours that belong together as one; messages name the first row of each group.

    Args:
        source: Where the rows come from.
        reader: The format, which says what belongs together.
    """

    def __init__(self, source: Source, reader: Format) -> None:
        self.source, self.reader = source, reader
        self._starts = array("q")

    def load(self) -> Iterator[Mapping[str, Any]]:
        """Go through the groups."""
        self._starts, count = array("q"), 0
        for row in group_rows(self.source.load(), self.reader):
            self._starts.append(count)
            yield row
            count += len(rows_of_group(row))

    def fingerprint(self) -> str:
        """That of the rows."""
        return self.source.fingerprint()

    def locate(self, row: int) -> str:
        """Where the first row of a group is."""
        return self.source.locate(self._starts[row])

    def __str__(self) -> str:
        """What messages call the source."""
        return str(self.source)


def grouped(source: Source, reader: Format) -> Source:
    """The source as a format reads it: itself, where rows stand alone."""
    return source if reader.groups_by() is None else _GroupedSource(source, reader)
