"""Pairs whose columns say which answer was preferred."""

from collections.abc import Sequence
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
    read_completion,
    read_list,
    read_number,
    read_prompt,
    read_text,
    shorten,
)
from lit_rlhf.options import check_option

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
        """The column of ratings, where one is set."""
        return () if self.attributes is None else (self.attributes,)

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

    @classmethod
    def candidates(cls) -> Sequence[Format]:
        """Also with the earlier turns in a column of their own, and as `lit-rlhf data convert` writes ratings."""
        return cls(), *(cls(prompt=name) for name in TURN_COLUMNS), cls(attributes="attributes")

    def reads(self) -> tuple[str, ...]:
        """Prompt and answers."""
        return self.prompt, self.chosen, self.rejected, *super().reads()

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

    def reads(self) -> tuple[str, ...]:
        """The transcripts."""
        return self.chosen, self.rejected, *super().reads()

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

    def reads(self) -> tuple[str, ...]:
        """The texts."""
        return self.chosen, self.rejected, *super().reads()

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
