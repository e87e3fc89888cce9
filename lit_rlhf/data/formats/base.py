"""What all formats share: the base class, and reading prompts and completions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from lit_rlhf.data.records import (
    InvalidRowError,
    Record,
    Row,
    Text,
    check_text,
    read_text,
    read_value,
)
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.options import check_option, is_text

Style = Literal["text", "turns", "transcript"]


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


def carried_columns(
    row: Row, columns: Sequence[str] | None, prompt: str | None = None
) -> dict[str, Any]:
    """The further columns of a row that go to the rewards.

    Args:
        row: The row.
        columns: Their names. None: all but the prompt's.
        prompt: The prompt's column.
    """
    if columns is None:
        return {name: row[name] for name in row if name != prompt}
    return {name: read_value(row, name) for name in columns}


def read_prompt(row: Row, column: str) -> Text:
    """A prompt that is not empty.

    Raises:
        InvalidRowError: It is empty, or no text.
    """
    prompt = read_text(row, column)
    if isinstance(prompt, str) and not prompt:
        raise InvalidRowError(
            "empty prompt", f"column {column!r} is empty (text without prompts: use PlainText)"
        )
    return prompt


def read_completion(row: Row, column: str, prompt: Text) -> Text:
    """A completion of the same kind as its prompt, see `check_completion`."""
    return check_completion(read_value(row, column), column, prompt)


def check_completion(value: Any, column: str, prompt: Text) -> Text:
    """Refuse a completion that doesn't fit its prompt; plain text after messages becomes the assistant's turn.

    Raises:
        InvalidRowError: Messages after plain text, or messages that repeat the prompt.
    """
    text = check_text(value, column)
    if isinstance(prompt, str):
        if not isinstance(text, str):
            raise InvalidRowError(
                "prompt and completion differ in kind",
                f"the prompt is plain text, column {column!r} holds messages. If they are whole conversations, use "
                "ImplicitPrompt or Conversation; if the prompt is a user's turn, give it as messages",
            )
        return text
    if isinstance(text, str):
        return [{"role": "assistant", "content": text}]
    if list(text[: len(prompt)]) == list(prompt):
        raise InvalidRowError(
            "completion repeats the prompt",
            f"column {column!r} holds the whole conversation; use ImplicitPrompt",
        )
    roles = [turn["role"] for turn in text]
    if set(roles) != {"assistant"}:
        raise InvalidRowError(
            "completion is no answer",
            f"the roles of column {column!r} are {roles}; what is learned is the assistant's, so put earlier turns "
            "into the prompt",
        )
    return text
