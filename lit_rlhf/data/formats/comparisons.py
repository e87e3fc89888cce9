"""Two answers and a column that says which of them was preferred."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lit_rlhf.data.conversion import Columns, Format, Style
from lit_rlhf.data.records import (
    InvalidRowError,
    Record,
    Row,
    read_bool,
    read_completion,
    read_list,
    read_number,
    read_prompt,
    read_value,
    shorten,
)

_VOTES = (("all_preferences_unprocessed", "strength"), ("individual_preference", "score"))


@dataclass(frozen=True)
class PreferenceStrength(Columns):
    """Two answers and how much the second is better: from -3, the first by far, to 3 (HelpSteer2 and HelpSteer3).

    The margin is the strength without its sign (arXiv:2410.01257). Rows of strength 0 prefer neither and can't be used.

    Args:
        prompt: Column of the prompt, text or messages.
        first: Column of the first answer.
        second: Column of the second one.
        strength: Column of the strength.
        with_margin: Whether the strength goes into the field `margin`.
    """

    prompt: str = "prompt"
    first: str = "response_1"
    second: str = "response_2"
    strength: str = "preference_strength"
    with_margin: bool = True
    style: ClassVar[Style] = "turns"

    @classmethod
    def candidates(cls) -> Sequence[Format]:
        """With HelpSteer2's names, or HelpSteer3's."""
        return cls(), cls("context", "response1", "response2", "overall_preference")

    def reads(self) -> tuple[str, ...]:
        """Prompt, answers and strength."""
        return self.prompt, self.first, self.second, self.strength

    def __call__(self, row: Row) -> list[Record]:
        """One record with two completions."""
        prompt = read_prompt(row, self.prompt)
        answers = [read_completion(row, column, prompt) for column in (self.first, self.second)]
        strength = read_number(row, self.strength, -3.0, 3.0)
        if strength == 0:
            raise InvalidRowError(
                "pair of equals", f"column {self.strength!r} is 0: neither is preferred"
            )
        better, worse = answers if strength < 0 else answers[::-1]
        fields = {"margin": abs(strength)} if self.with_margin else {}
        return [Record(prompt, (better, worse), fields)]

    def votes(self, row: Row) -> Sequence[float]:
        """The strengths that single raters gave: HelpSteer2 and HelpSteer3 have them."""
        sign = 1.0 if read_number(row, self.strength) > 0 else -1.0
        found = []
        for column, key in _VOTES:
            given = row.get(column)
            for vote in given if isinstance(given, list | tuple) else ():
                value = vote.get(key) if isinstance(vote, Mapping) else None
                if isinstance(value, float | int) and -3 <= value <= 3:
                    found.append(sign * value)
        return found


@dataclass(frozen=True)
class PreferenceLabel(Columns):
    """Two answers and a label that is true, or 1, where the first is preferred (SHP, arXiv:2110.08420).

    Args:
        prompt: Column of the prompt.
        first: Column of the first answer.
        second: Column of the second one.
        label: Column of the label.
    """

    prompt: str = "history"
    first: str = "human_ref_A"
    second: str = "human_ref_B"
    label: str = "labels"
    style: ClassVar[Style] = "turns"

    def reads(self) -> tuple[str, ...]:
        """Prompt, answers and label."""
        return self.prompt, self.first, self.second, self.label

    def __call__(self, row: Row) -> list[Record]:
        """One record with two completions."""
        prompt = read_prompt(row, self.prompt)
        answers = [read_completion(row, column, prompt) for column in (self.first, self.second)]
        better, worse = answers if read_bool(row, self.label) else answers[::-1]
        return [Record(prompt, (better, worse))]


@dataclass(frozen=True)
class SummaryComparison(Columns):
    """Two summaries of a post and which was chosen (summarize-from-feedback, arXiv:2009.01325).

    The prompt is laid out as in that paper: SUBREDDIT, TITLE and POST, or for news the article, then `TL;DR:`.

    Args:
        info: Column with the post's `subreddit`, `title` and `post`, or `title` and `article`.
        summaries: Column with the list of two summaries, each with a `text`.
        choice: Column with the place of the chosen one, 0 or 1.
    """

    info: str = "info"
    summaries: str = "summaries"
    choice: str = "choice"

    def reads(self) -> tuple[str, ...]:
        """All three."""
        return self.info, self.summaries, self.choice

    def __call__(self, row: Row) -> list[Record]:
        """One record with two completions."""
        info, summaries = read_value(row, self.info), read_list(row, self.summaries)
        post = info.get("post") or info.get("article")
        choice = read_number(row, self.choice, 0, 1)
        if not isinstance(post, str) or len(summaries) != 2 or choice not in (0, 1):
            raise InvalidRowError(
                "no post with two summaries and a choice",
                f"got {shorten(info)} with {len(summaries)} summaries, choice {choice:g}",
            )
        head = [("SUBREDDIT: r/", info.get("subreddit")), ("TITLE: ", info.get("title"))]
        lines = [f"{name}{value}" for name, value in head if value]
        prompt = "\n".join([*lines, f"POST: {post}", "TL;DR:"])
        texts = [" " + summary["text"].strip() for summary in summaries]
        chosen, rejected = texts if choice == 0 else texts[::-1]
        return [Record(prompt, (chosen, rejected))]
