"""Canonical records: what every format turns a raw row into, and the errors of rows that can't be turned."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lit_rlhf.errors import DataError

Row: TypeAlias = Mapping[str, Any]
"""A raw row: column to value."""
Message: TypeAlias = Mapping[str, Any]
"""A turn of a conversation: `role`, `content` and whatever else the chat template reads."""
Text: TypeAlias = str | Sequence[Message]
"""Plain text, or the turns of a conversation."""
FieldValue: TypeAlias = float | bool | tuple[float, ...]


class InvalidRowError(DataError):
    """A row that can't be used; the option `invalid` says whether it is dropped and counted or ends the run.

    Args:
        reason: What counts of dropped rows are kept by: a few words without values.
        detail: Which column, which values.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class TooLongError(InvalidRowError):
    """A row with more tokens than the limits allow; the option `too_long` says what happens to it."""


@dataclass(frozen=True)
class Record:
    """A prompt and K completions of it: the one shape of all data, before tokenization.

    Args:
        prompt: Plain text or messages.
        completions: K completions, of the same kind as the prompt. For pairs the chosen one comes first.
        fields: What goes into the batch beside the tokens: `margin`, `p_chosen`, `label` or `score`.
        columns: Further columns, carried to rewards as they are (prompts only).
        steps: The completions are the steps of one answer, in order: they are joined, and only the last gets EOS.
    """

    prompt: Text
    completions: tuple[Text, ...] = ()
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    steps: bool = False

    def prompt_key(self) -> str:
        """What splits go by: the prompt as one string, equal for equal prompts; of text without prompt, the text."""
        text = self.prompt or self.completions
        return text if isinstance(text, str) else json.dumps(text, sort_keys=True, default=list)


def read_value(row: Row, column: str) -> Any:
    """The value of a column that must be there.

    Raises:
        InvalidRowError: The row lacks the column, or its value is None.
    """
    if column not in row:
        raise InvalidRowError(f"no column {column!r}", f"the row's columns are {sorted(row)}")
    if row[column] is None:
        raise InvalidRowError(f"no value in column {column!r}", "the value is missing (None)")
    return row[column]


def read_text(row: Row, column: str) -> Text:
    """A column that holds plain text or a list of messages.

    Raises:
        InvalidRowError: It holds neither.
    """
    return check_text(read_value(row, column), column)


def check_text(value: Any, column: str) -> Text:
    """Refuse what is neither plain text nor a list of messages with role and content."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(_is_message(turn) for turn in value):
        return [_without_missing(turn) for turn in value]
    raise InvalidRowError(
        f"column {column!r} is neither text nor messages",
        f"got {type(value).__name__} {_shorten(value)}; messages are a list of {{'role': ..., 'content': ...}}",
    )


def read_number(row: Row, column: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A column that holds a finite number in a range, or text of one (as in CSV files).

    Raises:
        InvalidRowError: It holds something else.
    """
    return check_number(read_value(row, column), column, low, high)


def check_number(value: Any, column: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Refuse what is no finite number between `low` and `high`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InvalidRowError(f"column {column!r} is no number", f"got {_shorten(value)}") from None
    if not math.isfinite(number) or not low <= number <= high:
        span = "finite" if math.isinf(low) else f"between {low:g} and {high:g}"
        raise InvalidRowError(
            f"column {column!r} is out of range", f"got {number:g}, it must be {span}"
        )
    return number


def read_bool(row: Row, column: str) -> bool:
    """A column that holds true or false, 1 or 0, or text of these.

    Raises:
        InvalidRowError: It holds something else.
    """
    value = read_value(row, column)
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    answer = known.get(str(value).strip().lower())
    if answer is None:
        raise InvalidRowError(
            f"column {column!r} is out of range",
            f"got {_shorten(value)}, it must be true or false (or 1 or 0)",
        )
    return answer


def _is_message(turn: Any) -> bool:
    return isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and "content" in turn


def _without_missing(turn: Message) -> dict[str, Any]:
    # Arrow gives every message the keys of all messages; chat templates take a None for a value that is there.
    return {key: value for key, value in turn.items() if value is not None or key == "content"}


def _shorten(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
