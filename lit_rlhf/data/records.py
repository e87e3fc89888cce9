"""Canonical records, what formats read them by, and the errors of rows that can't be turned into one."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar, Never, TypeAlias

from lit_rlhf import types
from lit_rlhf.data.written import ROLES, written_messages
from lit_rlhf.errors import DataError

Row: TypeAlias = Mapping[str, Any]
"""A raw row: column to value."""
Message: TypeAlias = Mapping[str, Any]
"""A turn of a conversation: `role`, `content` and whatever else the chat template reads."""
CALLS = "tool_calls"
"""Where a message holds what tools it calls, and with what."""
Text: TypeAlias = types.Text
"""Plain text, or the turns of a conversation."""
FieldValue: TypeAlias = float | bool | tuple[float, ...]
LABELS = {
    **dict.fromkeys(("true", "1", "1.0", "+1"), True),
    **dict.fromkeys(("false", "0", "0.0", "-1", "-1.0"), False),
}
"""How text and numbers are read as labels, in any case of letters."""
OPTIONAL_FIELDS = {"margin": 0.0, "p_chosen": 1.0}
"""Fields that only some records have, and the value that says nothing beyond the order of the pair."""


class InvalidRowError(DataError):
    """A row that can't be used; the option `invalid` says whether it is dropped and counted or ends the run.

    Args:
        reason: What counts of dropped rows are kept by: a few words without values.
        detail: Which column, which values.
    """

    option: ClassVar[str] = "invalid"
    """The option that says what happens to such rows."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class TooLongError(InvalidRowError):
    """A row with more tokens than the limits allow; the option `too_long` says what happens to it."""

    option: ClassVar[str] = "too_long"


class LabelError(InvalidRowError):
    """A row whose label can't be read; where a whole class goes by it, the run ends."""


class UnreadableRow(Mapping[str, Any]):
    """Stands for a row that its file holds in no readable form; whoever looks into it gets the error.

    Args:
        reason: See `InvalidRowError`.
        detail: See `InvalidRowError`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.error = InvalidRowError(reason, detail)

    def __getitem__(self, key: object) -> Never:
        raise self.error

    def __iter__(self) -> Iterator[str]:
        raise self.error

    def __len__(self) -> int:
        raise self.error


class RowGroup(dict[str, Any]):
    """Neighbouring rows that a format converts together: the first of them, which knows all.

    Args:
        rows: One or more.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__(rows[0])
        self.rows = rows


def rows_of_group(row: Row) -> Sequence[Row]:
    """The rows that a row stands for: itself, or those of a group."""
    return row.rows if isinstance(row, RowGroup) else [row]


@dataclass(frozen=True)
class Record:
    """A prompt and K completions of it: the one shape of all data, before tokenization.

    Args:
        prompt: Plain text or messages.
        completions: K completions, of the same kind as the prompt. For pairs the chosen one comes first.
        fields: What goes into the batch beside the tokens: `margin`, `p_chosen`, `label` or `score`, `step_label`, and
            `attributes`, each completion's ratings one behind the other.
        columns: Further columns, carried to rewards as they are (prompts only).
        steps: The completions are the steps of one answer, in order: they are joined, and only the last gets EOS.
        template: What the chat template is given beside the messages, such as `tools`. None: what the row's columns
            `tools` and `chat_template_kwargs` say.
    """

    prompt: Text
    completions: tuple[Text, ...] = ()
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    steps: bool = False
    template: Mapping[str, Any] | None = None

    @property
    def p_chosen(self) -> float:
        """How probably the first completion is the better one; 1 where the data don't say."""
        given = self.fields.get("p_chosen", 1.0)
        assert isinstance(given, float | int)
        return float(given)

    def prompt_key(self) -> str:
        """What splits go by: the prompt as one string, equal for equal prompts; of text without prompt, the text."""
        text = self.prompt or self.completions
        return text if isinstance(text, str) else json.dumps(text, sort_keys=True, default=_plain)


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
    """Plain text, or messages with role and content, or ShareGPT's from and value; text parts of a content are joined.

    A message by itself stands for a list of one. A list of messages may be written as text, as CSV files have it.

    Raises:
        InvalidRowError: It is neither, or a content is no text.
    """
    if isinstance(value, str):
        turns = written_messages(value)
        if turns is None:
            return value
        value = turns
    if isinstance(value, Mapping) and value.keys() & {"content", "value"}:
        value = [value]
    turns = list(value) if isinstance(value, list | tuple) else []
    for place, turn in enumerate(turns):
        if isinstance(turn, Mapping) and not turn.get("role") and isinstance(turn.get("from"), str):
            own = {"role": ROLES.get(turn["from"], turn["from"]), "content": turn.get("value")}
            turns[place] = own | {
                k: v for k, v in turn.items() if k not in {"from", "value", "role"}
            }
    named = (isinstance(turn, Mapping) and isinstance(turn.get("role"), str) for turn in turns)
    if not turns or not all(named):
        value = turns if isinstance(value, list | tuple) else value
        raise InvalidRowError(
            f"column {column!r} is neither text nor messages",
            f"got {type(value).__name__} {shorten(value)}; messages are a list of {{'role': ..., 'content': ...}}",
        )
    return [_message(turn, column) for turn in turns]


def read_list(row: Row, column: str, least: int = 2) -> Sequence[Any]:
    """A column that holds a list of at least so many values.

    Raises:
        InvalidRowError: It holds something else.
    """
    value = read_value(row, column)
    if not isinstance(value, list | tuple) or len(value) < least:
        number = {1: "one", 2: "two"}[least]
        raise InvalidRowError(
            f"column {column!r} is no list of {number} or more", f"got {type(value).__name__}"
        )
    return value


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
    except (TypeError, ValueError, OverflowError):
        raise InvalidRowError(f"column {column!r} is no number", f"got {shorten(value)}") from None
    if not math.isfinite(number) or not low <= number <= high:
        span = "finite" if math.isinf(low) else f"between {low:g} and {high:g}"
        raise InvalidRowError(
            f"column {column!r} is out of range", f"got {number:g}, it must be {span}"
        )
    return number


def check_numbers(
    value: Any, column: str, low: float = -math.inf, high: float = math.inf
) -> tuple[float, ...]:
    """One number, or a list of one or more, each as `check_number` takes it."""
    if isinstance(value, list | tuple) and not value:
        raise InvalidRowError(f"column {column!r} is empty", "it must hold one number or more")
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(check_number(each, column, low, high) for each in several)


def ratings_by_answer(fields: Mapping[str, Any], count: int) -> list[Sequence[float]]:
    """The field `attributes` of a record, answer by answer; without ratings, empty ones.

    Args:
        fields: Of the record.
        count: How many answers it has.

    Example:
        >>> ratings_by_answer({"attributes": (3.0, 0.0, 1.0, 2.0)}, 2)
        [(3.0, 0.0), (1.0, 2.0)]
    """
    ratings: Sequence[float] = fields.get("attributes", ())
    size = len(ratings) // max(count, 1)
    return [ratings[place * size : (place + 1) * size] for place in range(count)]


def shown_turn(turn: Message) -> str:
    """A message for people to read: its role, what it says, and the tools that it calls.

    Example:
        >>> call = {"type": "function", "function": {"name": "look", "arguments": {}}}
        >>> shown_turn({"role": "assistant", "content": "", "tool_calls": [call]})
        '[assistant] {"name": "look", "arguments": {}}'
    """
    calls = [each.get("function", each) for each in turn.get(CALLS) or () if isinstance(each, dict)]
    said = [json.dumps(each, ensure_ascii=False, default=str) for each in calls]
    return " ".join([f"[{turn['role']}]", *filter(None, [str(turn["content"]), *said])])


def part_names(fields: Mapping[str, Any], count: int) -> list[str]:
    """What to call the prompt and its answers, by what is said of them.

    Args:
        fields: Of the record.
        count: How many answers there are.
    """
    names = ["answer"] * count
    said: list[list[str]] = [[] for _ in names]
    if "step_label" in fields:
        said = [[f"{label:g}"] for label in fields["step_label"]]
        names = ["step"] * len(said)
    elif "score" in fields and count > 1:
        said = [[f"{score:g}"] for score in fields["score"]]
    elif count == 2:
        names = ["chosen", "rejected"]
        said[0] = [f"{name} {fields[name]:g}" for name in ("margin", "p_chosen") if name in fields]
    else:
        said = [
            [f"{name} {fields[name]}" for name in ("label", "score") if name in fields]
            for _ in names
        ]
    for place, ratings in enumerate(ratings_by_answer(fields, len(said))):
        if ratings:
            said[place].append("rated " + ", ".join(f"{rating:g}" for rating in ratings))
    told = [f" ({', '.join(each)})" if each else "" for each in said]
    return ["prompt", *(f"{name}{tail}" for name, tail in zip(names, told, strict=True))]


def ordered_pairs(scores: Sequence[float]) -> Iterator[tuple[int, int, float]]:
    """The places of the better and the worse of each two scores that differ, and by how much they do.

    Example:
        >>> list(ordered_pairs([1.0, 3.0, 1.0]))
        [(1, 0, 2.0), (1, 2, 2.0)]
    """
    for one, other in combinations(range(len(scores)), 2):
        better, worse = (one, other) if scores[one] > scores[other] else (other, one)
        if scores[better] > scores[worse]:
            yield better, worse, scores[better] - scores[worse]


def required_fields(fields: Mapping[str, Any], answers: int) -> list[str]:
    """What all records of a batch must have alike: their fields but for optional ones, and how many attributes.

    Args:
        fields: Of a record.
        answers: How many completions it has.
    """
    count = len(fields.get("attributes", ())) // max(answers, 1)
    named = {name: f"{count} attributes" if name == "attributes" else name for name in fields}
    return sorted(each for name, each in named.items() if name not in OPTIONAL_FIELDS)


def read_bool(row: Row, column: str) -> bool:
    """A column that holds true or false, 1 or 0, 1 or -1, or text of these.

    Raises:
        LabelError: It holds something else.
    """
    value = read_value(row, column)
    plain = isinstance(value, str | int | float)
    answer = LABELS.get(str(value).strip().lower()) if plain else None
    if answer is None:
        raise LabelError(
            f"column {column!r} is out of range",
            f"got {shorten(value)}, it must be true or false (or 1 or 0, or 1 or -1)",
        )
    return answer


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


def shorten(value: Any, limit: int = 80) -> str:
    """A value as messages show it."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}..."


def without_missing(value: Any) -> Any:
    """Without the keys whose value is None: Arrow gives every dictionary of a column the keys of all of them."""
    if isinstance(value, Mapping):
        return {k: without_missing(item) for k, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_missing(item) for item in value]
    return value


def _message(turn: Message, column: str) -> Message:
    content = turn.get("content")
    if isinstance(content, str) and len(turn) == 2:
        return turn
    rest = {key: without_missing(value) for key, value in turn.items() if value is not None}
    if content is None:
        if rest.keys() <= {"role", "content", "name"}:
            raise InvalidRowError(
                f"a message of column {column!r} has no content", f"got {shorten(turn)}"
            )
        return {**rest, "content": ""}  # it calls tools, or holds a thought alone
    return {**rest, "content": content if isinstance(content, str) else _joined(content, column)}


def _joined(parts: Any, column: str) -> str:
    texts = []
    for part in parts if isinstance(parts, list | tuple) else [parts]:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind != "text" or not isinstance(text, str) or isinstance(parts, Mapping):
            raise InvalidRowError(
                f"a message of column {column!r} holds more than text",
                f"got {shorten(part)}; a content is text, or a list of {{'type': 'text', 'text': ...}}",
            )
        texts.append(text)
    return "".join(texts)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence | set | frozenset) else repr(value)
