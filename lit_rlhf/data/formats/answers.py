"""Prompts, and single answers to them: to imitate, or with a label."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

from lit_rlhf.data.conversion import Columns, Format, Style, check_columns, rates_all
from lit_rlhf.data.records import (
    FieldValue,
    InvalidRowError,
    Record,
    Row,
    Text,
    carried_columns,
    check_numbers,
    read_bool,
    read_completion,
    read_number,
    read_prompt,
    read_text,
    read_value,
)
from lit_rlhf.options import check_option, is_number, is_text


@dataclass(frozen=True)
class Demonstration(Columns):
    """A prompt and the answer to imitate.

    Args:
        prompt: Column of the prompt.
        completion: Column of the answer.
    """

    prompt: str = "prompt"
    completion: str = "completion"
    needed = ("prompt", "completion")

    def __call__(self, row: Row) -> list[Record]:
        """One record with one completion."""
        prompt = read_prompt(row, self.prompt)
        return [Record(prompt, (read_completion(row, self.completion, prompt),))]


@dataclass(frozen=True)
class Conversation(Columns):
    """A conversation whose last turn, the assistant's, is to be imitated.

    Turns are `role` and `content`, or ShareGPT's `from` and `value`.

    Args:
        messages: Column of the turns, the last of them the assistant's.
        system: Column with the text of a system turn, put in front where there is none; read when the data have it.
    """

    messages: str = "messages"
    system: str | None = "system"
    needed = ("messages",)

    @classmethod
    def candidates(cls) -> Sequence[Format]:
        """Under the names that the column has elsewhere too."""
        return cls(), cls(messages="conversations"), cls(messages="conversation")

    def __call__(self, row: Row) -> list[Record]:
        """One record with one completion: the last turn."""
        turns = read_text(row, self.messages)
        roles = [] if isinstance(turns, str) else [turn["role"] for turn in turns]
        if len(roles) < 2 or roles[-1] != "assistant" or roles[-2] == "assistant":
            raise InvalidRowError(
                f"column {self.messages!r} is no conversation with an answer",
                "it must be a list of messages, the last with the role 'assistant', after at least one other's; "
                f"its roles are {roles}",
            )
        system = [] if roles[0] == "system" else system_turns(row, self.system)
        return [Record([*system, *turns[:-1]], (turns[-1:],))]


def system_turns(row: Row, column: str | None) -> list[dict[str, Any]]:
    """The system turn that a column of text gives: none where the row has no such text."""
    text = row.get(column) if column is not None else None
    return [{"role": "system", "content": text}] if is_text(text) else []


@dataclass(frozen=True)
class PlainText(Columns):
    """Text to imitate from its first token on; the prompt is the tokenizer's start token alone.

    Args:
        text: Column of the text.
    """

    text: str = "text"
    weak: ClassVar[bool] = True
    needed = ("text",)

    def __call__(self, row: Row) -> list[Record]:
        """One record with an empty prompt and one completion."""
        text = read_text(row, self.text)
        if not isinstance(text, str):
            raise InvalidRowError(
                f"column {self.text!r} is no plain text", "it holds messages: use Conversation"
            )
        return [Record("", (text,))]


@dataclass(frozen=True)
class PromptOnly(Columns):
    """Prompts to roll out from, with further columns for rewards that need them (a reference answer, a topic).

    Args:
        prompt: Column of the prompt.
        columns: Which further columns are carried to the rewards. None: all of them.
    """

    prompt: str = "prompt"
    columns: list[str] | None = None
    needed = ("prompt",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_columns(self, self.columns)

    def __call__(self, row: Row) -> list[Record]:
        """One record without completions."""
        kept = carried_columns(row, self.columns, self.prompt)
        return [Record(read_prompt(row, self.prompt), columns=kept)]


@dataclass(frozen=True)
class Unpaired(Columns):
    """Single completions that are desirable or not, or have a score.

    Args:
        prompt: Column of the prompt.
        completion: Column of the completion.
        label: Column with true (desirable) or false, 1 or 0, or 1 or -1.
        score: Column with a number, instead of `label`; higher is better.
        low: Smallest score that is valid.
        high: Largest score that is valid.
        attributes: Columns with ratings of the completion, one for each attribute (`Attributes`, `GatedAttributes`); a
            column may hold a list of them. A column `attributes` is found by itself, where all of the first rows have
            it alike.
    """

    prompt: str = "prompt"
    completion: str = "completion"
    label: str = "label"
    score: str | None = None
    low: float = float("-inf")
    high: float = float("inf")
    attributes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        names: object = self.attributes
        named = isinstance(names, list | tuple) and all(map(is_text, names))
        check_option(named, self, "attributes", names, "a list of names, empty for none")
        numbers = is_number(self.low) and is_number(self.high)
        valid = numbers and self.low < self.high
        check_option(valid, self, "low", self.low, f"a number below high ({self.high!r})")

    @classmethod
    def candidates(cls) -> Sequence[Format]:
        """With a label, or with a score; and as `lit-rlhf data convert` writes ratings."""
        rated = ("attributes",)
        labelled, scored = cls(), cls(score="score")
        return labelled, scored, cls(attributes=rated), cls(score="score", attributes=rated)

    def recognises(self, rows: Sequence[Row]) -> bool:
        """Not with ratings that only some rows have: the others would be left out."""
        plain = replace(self, attributes=())
        whole = not self.attributes or rates_all(self, plain, rows)
        return whole and super().recognises(rows)

    def reads(self) -> tuple[str, ...]:
        """Prompt, answer, and label or score."""
        return self.prompt, self.completion, self.score or self.label, *self.attributes

    def __call__(self, row: Row) -> list[Record]:
        """One record with one completion and the field `label` or `score`."""
        prompt = read_prompt(row, self.prompt)
        values: dict[str, FieldValue] = (
            {"label": read_bool(row, self.label)}
            if self.score is None
            else {"score": read_number(row, self.score, self.low, self.high)}
        )
        if self.attributes:
            values["attributes"] = self.ratings(row)
        return [Record(prompt, (read_completion(row, self.completion, prompt),), values)]

    def ratings(self, row: Row) -> tuple[float, ...]:
        """What a completion got for each attribute."""
        ratings = (
            check_numbers(read_value(row, name), name, self.low, self.high)
            for name in self.attributes
        )
        return tuple(chain.from_iterable(ratings))


@dataclass(frozen=True)
class Alpaca(Columns):
    """An instruction, further input if it needs any, and the answer to imitate (Alpaca, Dolly).

    Args:
        instruction: Column of the instruction.
        input: Column with what it is about, put behind it after a line break; may be empty or missing.
        output: Column of the answer.
        system: See `Conversation`.
    """

    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    system: str | None = "system"
    style: ClassVar[Style] = "turns"
    needed = ("instruction", "output")

    @classmethod
    def candidates(cls) -> Sequence[Format]:
        """With Alpaca's names, or Dolly's."""
        return cls(), cls(input="context", output="response")

    def __call__(self, row: Row) -> list[Record]:
        """One record with one completion."""
        prompt: Text = read_prompt(row, self.instruction)
        further = row.get(self.input)
        if isinstance(prompt, str) and is_text(further):
            prompt = f"{prompt}\n{further}"
        system = system_turns(row, self.system)
        if system:
            question = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            prompt = [*system, *question]
        return [Record(prompt, (read_completion(row, self.output, prompt),))]


@dataclass(frozen=True)
class HelpSteer2Ratings(Unpaired):
    """Answers with ratings from 0 to 4 (HelpSteer2, arXiv:2406.08673), for pointwise losses.

    Args:
        prompt: Column of the prompt.
        completion: Column of the answer.
        label: Not read.
        score: Column of the rating: helpfulness, or another attribute.
        low: Smallest rating.
        high: Largest rating.
        attributes: See `Unpaired`: helpfulness, correctness, coherence, complexity, verbosity.
    """

    completion: str = "response"
    score: str | None = "helpfulness"
    low: float = 0.0
    high: float = 4.0
    style: ClassVar[Style] = "turns"

    @classmethod
    def candidates(cls) -> Sequence[Format]:
        """With helpfulness."""
        return (cls(),)
