"""Formats: how a raw row becomes canonical records.

A format of your own is a subclass with one method:

    class Ratings(Format):
        def __call__(self, row):
            good, bad = sorted(row["answers"], key=lambda answer: -answer["stars"])[:2]
            return [Record(prompt=row["question"], completions=(good["text"], bad["text"]))]

Column values are plain text or messages (`[{"role": "user", "content": "..."}]`) and each format takes both; messages
are rendered with the tokenizer's chat template.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

from lit_rlhf.data.records import (
    FieldValue,
    InvalidRowError,
    Record,
    Row,
    Text,
    check_number,
    check_text,
    read_bool,
    read_list,
    read_number,
    read_text,
    read_value,
)
from lit_rlhf.options import check_option, is_number, is_text

TRANSCRIPT_MARKER = "\n\nAssistant:"
"""What comes before each answer in the transcripts of HH-RLHF (arXiv 2204.05862)."""
TRANSCRIPT_QUESTION = "\n\nHuman:"
"""What comes before each question in them."""


class Format(ABC):
    """Turns a raw row into records.

    The cache of tokens goes by the options that a format declares (the fields of a dataclass, else the arguments of its
    constructor, kept under their names) and by its code. A class attribute `version` stands for the code: whoever states
    one changes it with what the format gives. A method `cache_key` that gives plain values replaces both.
    """

    @abstractmethod
    def __call__(self, row: Row) -> list[Record]:
        """Convert a row.

        Raises:
            InvalidRowError: The row can't be used.
        """


@dataclass(frozen=True)
class Columns(Format):
    """A format whose options name columns.

    Raises:
        ConfigurationError: One is no name.
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


@dataclass(frozen=True)
class ExplicitPrompt(Columns):
    """Pairs with the prompt in a column of its own.

    Args:
        prompt: Column of the prompt.
        chosen: Column of the answer that was preferred.
        rejected: Column of the other one.
        margin: Column that says by how much, in units of reward; read when the data have it. None: never read.
        p_chosen: Column with the probability, from 0 to 1, that a rater prefers `chosen`; read when the data have it.
    """

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    margin: str | None = "margin"
    p_chosen: str | None = "p_chosen"

    def __call__(self, row: Row) -> list[Record]:
        """One record with two completions.

        Example:
            >>> ExplicitPrompt()({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"})[
            ...     0
            ... ].completions
            (' 4', ' 5')
        """
        prompt = read_prompt(row, self.prompt)
        pair = (
            read_completion(row, self.chosen, prompt),
            read_completion(row, self.rejected, prompt),
        )
        return [Record(prompt, pair, _pair_fields(row, self.margin, self.p_chosen))]


@dataclass(frozen=True)
class ImplicitPrompt(Columns):
    """Pairs of whole transcripts that begin alike, as in HH-RLHF (arXiv 2204.05862).

    Of text, the prompt is everything up to and including the last marker of `chosen`; of messages, all but the last.
    `rejected` must begin with the same prompt and then be one answer too: a pair that diverges earlier or goes on for
    more turns is invalid, never cut to fit.

    Args:
        chosen: Column of the transcript that was preferred.
        rejected: Column of the other one.
        marker: What stands before an answer.
        question: What stands before a question.
        margin: See `ExplicitPrompt`.
        p_chosen: See `ExplicitPrompt`.
    """

    chosen: str = "chosen"
    rejected: str = "rejected"
    marker: str = TRANSCRIPT_MARKER
    question: str = TRANSCRIPT_QUESTION
    margin: str | None = "margin"
    p_chosen: str | None = "p_chosen"

    def __call__(self, row: Row) -> list[Record]:
        r"""One record with two completions.

        Example:
            >>> turn = "\n\nHuman: hi\n\nAssistant:"
            >>> ImplicitPrompt()({"chosen": turn + " hello", "rejected": turn + " go"})[
            ...     0
            ... ].completions
            (' hello', ' go')
        """
        chosen, rejected = read_text(row, self.chosen), read_text(row, self.rejected)
        cut = self._cut(chosen)
        prompt = chosen[:cut]
        if type(chosen) is not type(rejected) or rejected[:cut] != prompt:
            raise InvalidRowError(
                "chosen and rejected have different prompts",
                f"{self.rejected!r} doesn't begin with the prompt of {self.chosen!r}, which ends in {prompt[-60:]!r}",
            )
        for column, answer in ((self.chosen, chosen[cut:]), (self.rejected, rejected[cut:])):
            self._check_answer(column, answer)
        completions = chosen[cut:], rejected[cut:]
        return [Record(prompt, completions, _pair_fields(row, self.margin, self.p_chosen))]

    def _check_answer(self, column: str, answer: Text) -> None:
        if isinstance(answer, str):
            further = [text for text in (self.question, self.marker) if text in answer]
            detail = f"{further[0]!r} stands in it" if further else ""
        else:
            roles = [turn["role"] for turn in answer]
            detail = "" if roles == ["assistant"] else f"its roles are {roles}"
        if detail:
            raise InvalidRowError(
                f"column {column!r} goes on for more than one answer",
                f"behind the prompt of {self.chosen!r}, {detail}",
            )

    def _cut(self, chosen: Text) -> int:
        if not isinstance(chosen, str):
            if len(chosen) < 2 or chosen[-1]["role"] != "assistant":
                raise InvalidRowError(
                    f"column {self.chosen!r} doesn't end in an answer",
                    f"its roles are {[turn['role'] for turn in chosen]}, the last must be 'assistant', after a prompt",
                )
            return len(chosen) - 1
        start = chosen.rfind(self.marker)
        if start < 0:
            raise InvalidRowError(
                f"column {self.chosen!r} has no answer",
                f"the marker {self.marker!r} is not in it; set `marker`, or use ExplicitPrompt",
            )
        return start + len(self.marker)


@dataclass(frozen=True)
class Demonstration(Columns):
    """A prompt and the answer to imitate.

    Args:
        prompt: Column of the prompt.
        completion: Column of the answer.
    """

    prompt: str = "prompt"
    completion: str = "completion"

    def __call__(self, row: Row) -> list[Record]:
        """One record with one completion."""
        prompt = read_prompt(row, self.prompt)
        return [Record(prompt, (read_completion(row, self.completion, prompt),))]


@dataclass(frozen=True)
class Conversation(Columns):
    """A conversation whose last turn, the assistant's, is to be imitated.

    Args:
        messages: Column of the turns, the last of them the assistant's.
    """

    messages: str = "messages"

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
        return [Record(turns[:-1], (turns[-1:],))]


@dataclass(frozen=True)
class PlainText(Columns):
    """Text to imitate from its first token on; the prompt is the tokenizer's start token alone.

    Args:
        text: Column of the text.
    """

    text: str = "text"

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

    def __post_init__(self) -> None:
        super().__post_init__()
        names: object = [] if self.columns is None else self.columns
        valid = isinstance(names, list | tuple) and all(map(is_text, names))
        check_option(valid, self, "columns", self.columns, "a list of names or left out")

    def __call__(self, row: Row) -> list[Record]:
        """One record without completions."""
        names = (
            [name for name in row if name != self.prompt] if self.columns is None else self.columns
        )
        kept = {
            name: row[name] if self.columns is None else read_value(row, name) for name in names
        }
        return [Record(read_prompt(row, self.prompt), columns=kept)]


@dataclass(frozen=True)
class Ranked(Columns):
    """Several completions of a prompt with a score each, or with ranks.

    Args:
        prompt: Column of the prompt.
        completions: Column with the list of completions.
        scores: Column with the list of their scores; higher is better.
        ranks: Column with the list of their ranks, 1 being the best, instead of scores; a rank r becomes the score -r.
    """

    prompt: str = "prompt"
    completions: str = "completions"
    scores: str = "scores"
    ranks: str | None = None

    def __call__(self, row: Row) -> list[Record]:
        """One record with K completions and the field `score` of K numbers."""
        prompt = read_prompt(row, self.prompt)
        answers = read_list(row, self.completions)
        column, sign = (self.scores, 1.0) if self.ranks is None else (self.ranks, -1.0)
        scores = tuple(sign * check_number(value, column) for value in read_list(row, column))
        if len(scores) != len(answers):
            raise InvalidRowError(
                f"columns {self.completions!r} and {column!r} differ in length",
                f"{len(answers)} completions, {len(scores)} values",
            )
        completions = tuple(
            check_completion(answer, self.completions, prompt) for answer in answers
        )
        return [Record(prompt, completions, {"score": scores})]


@dataclass(frozen=True)
class Steps(Columns):
    """A solution in steps, each with a label (PRM800K, arXiv:2305.20050; the columns are those of TRL's step data).

    Args:
        prompt: Column of the problem.
        completions: Column with the list of steps, plain text.
        labels: Column with the list of their labels: true or false, or the probability that the step is right.
        separator: Put behind each step but the last, as the policy that is to be judged writes it.
    """

    prompt: str = "prompt"
    completions: str = "completions"
    labels: str = "labels"
    separator: str = "\n"

    def __call__(self, row: Row) -> list[Record]:
        r"""One record whose completions are the steps, and the field `step_label` of as many numbers.

        Example:
            >>> row = {
            ...     "prompt": "1 + 2 + 3?",
            ...     "completions": ["1 + 2 = 3", "3 + 3 = 7"],
            ...     "labels": [True, False],
            ... }
            >>> record = Steps()(row)[0]
            >>> record.completions, record.fields["step_label"]
            (('1 + 2 = 3\n', '3 + 3 = 7'), (1.0, 0.0))
        """
        steps, labels = (
            read_list(row, self.completions, least=1),
            read_list(row, self.labels, least=1),
        )
        if len(steps) != len(labels):
            raise InvalidRowError(
                f"columns {self.completions!r} and {self.labels!r} differ in length",
                f"{len(steps)} steps, {len(labels)} labels",
            )
        if not all(isinstance(step, str) for step in steps):
            raise InvalidRowError(
                f"column {self.completions!r} is no list of text", "steps are plain text"
            )
        numbers = tuple(check_number(label, self.labels, 0.0, 1.0) for label in labels)
        parts = (*(f"{step}{self.separator}" for step in steps[:-1]), steps[-1])
        return [Record(read_prompt(row, self.prompt), parts, {"step_label": numbers}, steps=True)]


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
    """

    prompt: str = "prompt"
    completion: str = "completion"
    label: str = "label"
    score: str | None = None
    low: float = float("-inf")
    high: float = float("inf")

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = is_number(self.low) and is_number(self.high)
        valid = numbers and self.low < self.high
        check_option(valid, self, "low", self.low, f"a number below high ({self.high!r})")

    def __call__(self, row: Row) -> list[Record]:
        """One record with one completion and the field `label` or `score`."""
        prompt = read_prompt(row, self.prompt)
        values: dict[str, FieldValue] = (
            {"label": read_bool(row, self.label)}
            if self.score is None
            else {"score": read_number(row, self.score, self.low, self.high)}
        )
        return [Record(prompt, (read_completion(row, self.completion, prompt),), values)]


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
            f"the roles of column {column!r} are {roles}; what is learned is the assistant's, so put earlier turns into "
            "the prompt",
        )
    return text


def _pair_fields(row: Row, margin: str | None, p_chosen: str | None) -> dict[str, FieldValue]:
    found: dict[str, FieldValue] = {}
    if margin is not None and row.get(margin) is not None:
        found["margin"] = read_number(row, margin)
    if p_chosen is not None and row.get(p_chosen) is not None:
        found["p_chosen"] = read_number(row, p_chosen, 0.0, 1.0)
    return found
