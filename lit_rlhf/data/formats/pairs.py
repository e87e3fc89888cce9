"""Pairs: columns of the preferred answer and of the other, or two answers and a column that says which it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from lit_rlhf.data.conversion import Columns, Format, Style, rates_all
from lit_rlhf.data.records import (
    FieldValue,
    InvalidRowError,
    Record,
    Row,
    Text,
    check_numbers,
    read_bool,
    read_completion,
    read_list,
    read_number,
    read_prompt,
    read_text,
    read_value,
    shorten,
)
from lit_rlhf.options import check_option

_VOTES = (("all_preferences_unprocessed", "strength"), ("individual_preference", "score"))
TRANSCRIPT_MARKER = "\n\nAssistant:"
"""What comes before each answer in the transcripts of HH-RLHF (arXiv 2204.05862)."""


TRANSCRIPT_QUESTION = "\n\nHuman:"
"""What comes before each question in them."""
TURN_COLUMNS = ("conversations", "messages")
"""Where pairs beside a conversation have its turns: LLaMA-Factory's name, and the usual one."""


@dataclass(frozen=True, kw_only=True)
class Pairs(Columns):
    """A format that gives pairs; columns that say more than which answer was preferred.

    Args:
        margin: Column that says by how much, in units of reward; read when the data have it. None: never read.
        p_chosen: Column with the probability, from 0 to 1, that a rater prefers `chosen`; read when the data have it.
        chosen_score: Column with the score of `chosen`: the margin is its distance to that of `rejected`
            (UltraFeedback: score_chosen). None: scores are not read.
        rejected_score: Column with the score of `rejected`; set both or none.
        attributes: Column with the ratings of `chosen` and of `rejected`: two lists with one for each attribute
            (`Attributes`, `GatedAttributes`). None: not read.

    Raises:
        ConfigurationError: One of the two columns of scores is set without the other.
    """

    margin: str | None = "margin"
    p_chosen: str | None = "p_chosen"
    chosen_score: str | None = None
    rejected_score: str | None = None
    attributes: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        both = (self.chosen_score is None) == (self.rejected_score is None)
        allowed = f"set where chosen_score ({self.chosen_score!r}) is, and only there"
        check_option(both, self, "rejected_score", self.rejected_score, allowed)

    def reads(self) -> tuple[str, ...]:
        """What the format needs, and the column of ratings where one is set."""
        return (*super().reads(), *([] if self.attributes is None else [self.attributes]))

    def pair_fields(self, row: Row) -> dict[str, FieldValue]:
        """Margin and soft label of a pair, as far as its row has them, and ratings."""
        found: dict[str, FieldValue] = {}
        if self.chosen_score is not None and self.rejected_score is not None:
            rejected = read_number(row, self.rejected_score)
            found["margin"] = read_number(row, self.chosen_score) - rejected
        elif self.margin is not None and row.get(self.margin) is not None:
            found["margin"] = read_number(row, self.margin)
        if self.p_chosen is not None and row.get(self.p_chosen) is not None:
            found["p_chosen"] = read_number(row, self.p_chosen, 0.0, 1.0)
        if self.attributes is not None:
            name = self.attributes
            ratings = [check_numbers(each, name) for each in read_list(row, name)]
            if len(ratings) != 2 or len(ratings[0]) != len(ratings[1]):
                raise InvalidRowError(
                    f"column {name!r} doesn't rate two answers alike",
                    f"got lists of {[len(each) for each in ratings]} ratings, two of one length are needed",
                )
            found["attributes"] = ratings[0] + ratings[1]
        return found


@dataclass(frozen=True)
class ExplicitPrompt(Pairs):
    """Pairs with the prompt in a column of its own.

    Args:
        prompt: Column of the prompt.
        chosen: Column of the answer that was preferred.
        rejected: Column of the other one.
    """

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    needed = ("prompt", "chosen", "rejected")

    @classmethod
    def candidates(cls) -> Sequence[Format]:
        """Also with the earlier turns in a column of their own, and as `lit-rlhf data convert` writes ratings."""
        return cls(), *(cls(prompt=name) for name in TURN_COLUMNS), cls(attributes="attributes")

    def recognises(self, rows: Sequence[Row]) -> bool:
        """Not where both answers repeat the prompt, or a conversation is answered: then they hold transcripts.

        Nor with ratings that only some rows have: the others would be left out.
        """
        if not super().recognises(rows) or all(map(self._repeats, rows)):
            return False
        if self.attributes is not None and not rates_all(
            self, replace(self, attributes=None), rows
        ):
            return False
        if self.prompt not in TURN_COLUMNS:  # a prompt may end in what the answer goes on with
            return True
        asked = (self(row)[0].prompt for row in rows if self.reads_row(row))
        last = [prompt[-1]["role"] for prompt in asked if not isinstance(prompt, str)]
        return 2 * last.count("assistant") <= len(last)

    def _repeats(self, row: Row) -> bool:
        prompt, texts = row.get(self.prompt), (row.get(self.chosen), row.get(self.rejected))
        return isinstance(prompt, str) and all(
            isinstance(text, str) and text.startswith(prompt) for text in texts
        )

    def __call__(self, row: Row) -> list[Record]:
        """One record with two completions.

        Example:
            >>> row = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
            >>> ExplicitPrompt()(row)[0].completions
            (' 4', ' 5')
        """
        prompt = read_prompt(row, self.prompt)
        pair = tuple(read_completion(row, each, prompt) for each in (self.chosen, self.rejected))
        return [Record(prompt, pair, self.pair_fields(row))]


@dataclass(frozen=True)
class ImplicitPrompt(Pairs):
    """Pairs of whole transcripts that begin alike, as in HH-RLHF (arXiv 2204.05862).

    Of text, the prompt is everything up to and including the last marker of `chosen`; of messages, all but the last.
    `rejected` must begin with the same prompt and then be one answer too: a pair that diverges earlier or goes on for
    more turns is invalid, never cut to fit.

    Args:
        chosen: Column of the transcript that was preferred.
        rejected: Column of the other one.
        marker: What stands before an answer.
        question: What stands before a question.
    """

    chosen: str = "chosen"
    rejected: str = "rejected"
    marker: str = TRANSCRIPT_MARKER
    question: str = TRANSCRIPT_QUESTION
    style: ClassVar[Style] = "transcript"
    needed = ("chosen", "rejected")

    def __call__(self, row: Row) -> list[Record]:
        r"""One record with two completions.

        Example:
            >>> turn = "\n\nHuman: hi\n\nAssistant:"
            >>> row = {"chosen": turn + " hello", "rejected": turn + " go"}
            >>> ImplicitPrompt()(row)[0].completions
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
        return [Record(prompt, completions, self.pair_fields(row))]

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
                f"the marker {self.marker!r} is not in it; set `marker`, or use ExplicitPrompt or SharedPrefix",
            )
        return start + len(self.marker)


@dataclass(frozen=True)
class SharedPrefix(Pairs):
    """Pairs of plain text without markers that begin alike: the prompt is what they share, up to the end of a word.

    Where answers begin with the same words, these count as prompt: a loss that compares the two is the same for it.

    Args:
        chosen: Column of the text that was preferred.
        rejected: Column of the other one.
    """

    chosen: str = "chosen"
    rejected: str = "rejected"
    needed = ("chosen", "rejected")

    def __call__(self, row: Row) -> list[Record]:
        """One record with two completions.

        Example:
            >>> row = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
            >>> SharedPrefix()(row)[0].prompt
            'The sky is'
        """
        chosen, rejected = read_text(row, self.chosen), read_text(row, self.rejected)
        if not isinstance(chosen, str) or not isinstance(rejected, str):
            raise InvalidRowError(
                "chosen or rejected is no plain text", "of messages: use ImplicitPrompt"
            )
        if TRANSCRIPT_MARKER in chosen or TRANSCRIPT_MARKER in rejected:
            raise InvalidRowError(
                "chosen or rejected is a transcript",
                f"{TRANSCRIPT_MARKER!r} stands in it, so what differs may be several turns: use ImplicitPrompt",
            )
        pairs = enumerate(zip(chosen, rejected, strict=False))
        shorter = min(len(chosen), len(rejected))
        cut = next((place for place, (one, other) in pairs if one != other), shorter)
        whole_words = all(text[cut : cut + 1].isspace() for text in (chosen, rejected))
        while cut > 0 and not whole_words:  # the tail of a word both begin with is the answers'
            cut -= 1
            whole_words = chosen[cut].isspace()
        if cut == 0:
            raise InvalidRowError(
                "chosen and rejected share no beginning",
                f"got {shorten(chosen)} and {shorten(rejected)}; with a column of prompts, use ExplicitPrompt",
            )
        fields = self.pair_fields(row)
        return [Record(chosen[:cut], (chosen[cut:], rejected[cut:]), fields)]


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
    needed = ("prompt", "first", "second", "strength")

    @classmethod
    def candidates(cls) -> Sequence[Format]:
        """With HelpSteer2's names, or HelpSteer3's."""
        return cls(), cls("context", "response1", "response2", "overall_preference")

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


_FIRST, _SECOND = ("a", "model_a", "first"), ("b", "model_b", "second")
_TIES = ("tie", "draw", "equal", "same", "both", "neither")


@dataclass(frozen=True)
class PreferenceLabel(Columns):
    """Two answers and a label that is true, or 1, where the first is preferred (SHP, arXiv:2110.08420).

    The label may also say which one it is: `a` or `b`, `model_a` or `model_b`, `first` or `second`, or the name of its
    column. Ties teach no order: they are left out and counted.

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
    needed = ("prompt", "first", "second", "label")

    def __call__(self, row: Row) -> list[Record]:
        """One record with two completions."""
        prompt = read_prompt(row, self.prompt)
        answers = [read_completion(row, column, prompt) for column in (self.first, self.second)]
        better, worse = answers if self._first_is_better(row) else answers[::-1]
        return [Record(prompt, (better, worse))]

    def _first_is_better(self, row: Row) -> bool:
        said = str(read_value(row, self.label)).strip().lower()
        columns = self.first.lower(), self.second.lower()
        if said in columns:  # before other words: a column may be called `a` and stand second
            return said == columns[0]
        if said.startswith(_TIES):
            raise InvalidRowError("a tie", f"column {self.label!r} says {said[:40]!r}")
        return said in _FIRST or (said not in _SECOND and read_bool(row, self.label))


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
    needed = ("info", "summaries", "choice")

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
