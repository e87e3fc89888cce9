"""Solutions in labelled steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lit_rlhf.data.conversion import Columns, Style
from lit_rlhf.data.records import (
    InvalidRowError,
    Record,
    Row,
    Text,
    check_number,
    read_list,
    read_prompt,
    read_text,
    read_value,
    shorten,
)


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
    needed = ("prompt", "completions", "labels")

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
        steps = read_list(row, self.completions, least=1)
        labels = read_list(row, self.labels, least=1)
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
        return [labelled_steps(read_prompt(row, self.prompt), steps, numbers, self.separator)]


def labelled_steps(
    prompt: Text, steps: Sequence[str], labels: Sequence[float], separator: str
) -> Record:
    """A record of steps, each but the last with the separator behind it."""
    parts = (*(f"{step}{separator}" for step in steps[:-1]), steps[-1])
    return Record(prompt, parts, {"step_label": tuple(labels)}, steps=True)


@dataclass(frozen=True)
class PRM800K(Columns):
    """Solutions as PRM800K's raters labelled them step by step (arXiv:2305.20050).

    The solution is the chosen completion of each step; where none was chosen, the one that a person wrote, which is
    right, or else the first, whose step is then the last.

    Args:
        question: Column with the question's `problem`.
        label: Column with the label's `steps`.
        neutral: Label of steps that were rated 0: that paper counts them as right.
        separator: See `Steps`.
    """

    question: str = "question"
    label: str = "label"
    neutral: float = 1.0
    separator: str = "\n"
    style: ClassVar[Style] = "turns"
    needed = ("question", "label")

    def __call__(self, row: Row) -> list[Record]:
        """One record whose completions are the steps."""
        question, label = read_value(row, self.question), read_value(row, self.label)
        if not isinstance(question, Mapping) or not isinstance(label, Mapping):
            raise InvalidRowError(
                "no question with labelled steps", f"got {shorten(question)} and {shorten(label)}"
            )
        steps, labels = [], []
        for step in read_list(label, "steps", least=1):
            chosen = step.get("chosen_completion")
            if chosen is None and step.get("human_completion"):
                taken = {**step["human_completion"], "rating": 1}
            else:
                taken = read_list(step, "completions", least=1)[chosen or 0]
            rating = check_number(taken.get("rating"), "rating", -1, 1)
            steps.append(taken["text"])
            labels.append({-1: 0.0, 0: self.neutral}.get(int(rating), 1.0))
            if chosen is None and not step.get("human_completion"):
                break
        return [labelled_steps(read_prompt(question, "problem"), steps, labels, self.separator)]


@dataclass(frozen=True)
class MathShepherd(Columns):
    """Problem and solution in one text, with a tag behind each step (Math-Shepherd, arXiv:2312.08935).

    Args:
        text: Column with the problem and the steps, `tag` behind each.
        label: Column with the same text, and + or - in place of the tags.
        tag: Stands behind each step.
        first: What the first step begins with: the problem is what stands before.
        separator: See `Steps`.
    """

    text: str = "input"
    label: str = "label"
    tag: str = "ки"
    first: str = "Step 1:"
    separator: str = "\n"
    style: ClassVar[Style] = "turns"
    needed = ("text", "label")

    def __call__(self, row: Row) -> list[Record]:
        """One record whose completions are the steps."""
        text, marked = read_text(row, self.text), read_text(row, self.label)
        if not isinstance(text, str) or not isinstance(marked, str) or self.first not in text:
            raise InvalidRowError(
                "no problem with marked steps", f"{self.first!r} is not in {shorten(text)}"
            )
        *parts, _ = text.split(self.tag)
        labels, place = [], 0
        for part in parts:
            place += len(part)
            sign = marked[place : place + 1]
            if marked[place - len(part) : place] != part or sign not in ("+", "-"):
                raise InvalidRowError(
                    f"columns {self.text!r} and {self.label!r} differ in their text",
                    f"behind {shorten(part)}; of the other, {shorten(marked[place - 20 : place + 20])}",
                )
            labels.append(float(sign == "+"))
            place += 1
        if not parts:
            raise InvalidRowError(
                "no problem with marked steps", f"{self.tag!r} is not in {shorten(text)}"
            )
        problem, _, opening = parts[0].partition(self.first)
        steps = [part.strip() for part in (self.first + opening, *parts[1:])]
        return [labelled_steps(problem.strip(), steps, labels, self.separator)]
