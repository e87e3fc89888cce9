"""Rewards that follow a rule and need no model."""

import re
from abc import abstractmethod
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal

import torch

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.options import check_option
from lit_rlhf.rewards.base import Reward, as_scores, read_column
from lit_rlhf.types import Completions, Scores

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
# A minus between two numbers, as in 5-3, is no sign.
_NUMBER = re.compile(r"(?:(?<![\d)])[-\u2212])?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


class TextReward(Reward):
    """A reward that depends on the text of the response alone; subclasses say how in `of_text`."""

    def score(self, completions: Completions) -> Scores:
        """(N,) float32."""
        return as_scores([self.of_text(each) for each in completions.responses], completions)

    @abstractmethod
    def of_text(self, response: str) -> float:
        """The reward of one response."""


class NoReward(Reward):
    """0 for all: for methods whose signal is another one, such as distillation."""

    def score(self, completions: Completions) -> Scores:
        """(N,) float32."""
        zeros = completions.tokens.new_zeros(len(completions.tokens), dtype=torch.float32)
        return Scores(zeros, given=False)


class LengthReward(Reward):
    r"""$-|n - n^*| / s$ of the response's length n, or $n / s$ where there is no target.

    Args:
        target: $n^*$; None rewards length itself (with a negative scale, shortness).
        scale: $s$, in units of length; the larger, the weaker. Not 0.
        unit: What is counted: tokens of the policy (EOS included), words, or characters.

    Raises:
        ConfigurationError: The scale is 0.
    """

    def __init__(
        self,
        target: float | None = None,
        scale: float = 1.0,
        unit: Literal["tokens", "words", "characters"] = "tokens",
    ) -> None:
        super().__init__()
        allowed = "how many units of length a reward of 1 is: not 0"
        check_option(abs(scale) > 0, self, "scale", scale, allowed)
        self.target = target
        self.scale = scale
        self.unit = unit

    def score(self, completions: Completions) -> Scores:
        """(N,) float32."""
        if self.unit == "tokens":
            lengths = completions.response_mask.sum(-1).float()
        else:
            units = list if self.unit == "characters" else _WORD.findall
            counts = [float(len(units(response))) for response in completions.responses]
            lengths = as_scores(counts, completions).total
        if self.target is None:
            return Scores(lengths / self.scale)
        return Scores(-(lengths - self.target).abs() / self.scale)


class PatternReward(TextReward):
    r"""One number for responses in which a regular expression is found, another for all others.

    Args:
        pattern: In Python's syntax; flags go in front, as in `(?is)`.
        found: Reward where it is found.
        missing: Reward where it isn't.
        whole: The whole response must match, not a part of it.

    Raises:
        ConfigurationError: The pattern is no regular expression.

    Example:
        >>> PatternReward(r"^(?:yes|no)\b").of_text("yes, it is")
        1.0
    """

    def __init__(
        self, pattern: str, found: float = 1.0, missing: float = 0.0, whole: bool = False
    ) -> None:
        super().__init__()
        self.pattern = compile_pattern(pattern, "PatternReward.pattern")
        self.found = found
        self.missing = missing
        self.whole = whole

    def of_text(self, response: str) -> float:
        """`found` or `missing`."""
        match = self.pattern.fullmatch(response) if self.whole else self.pattern.search(response)
        return self.missing if match is None else self.found


class LexiconReward(TextReward):
    """The sum of the weights of the response's words, or their mean over all its words.

    Words are compared without case; a word that is listed counts each time it occurs.

    Args:
        words: Weight of each word.
        file: A file with further words, one to a line: the word, a tab, its weight.
        mean: Divide by the number of words of the response, listed or not, so that length earns nothing.

    Raises:
        ConfigurationError: No words are given, or an entry is no single word.
        DataError: A line of the file can't be read.

    Example:
        >>> LexiconReward({"good": 1.0, "bad": -1.0}).of_text("Good, good; not bad.")
        1.0
    """

    def __init__(
        self, words: dict[str, float] | None = None, file: str | None = None, mean: bool = False
    ) -> None:
        super().__init__()
        given = {**(_read_lexicon(Path(file)) if file is not None else {}), **(words or {})}
        self.words = {word.lower(): weight for word, weight in given.items()}
        self.mean = mean
        if not self.words:
            raise ConfigurationError(
                "LexiconReward has no words: give `words`, a weight for each word, or a `file` of them."
            )
        for word in self.words:
            if _WORD.fullmatch(word) is None:
                raise ConfigurationError(
                    f"LexiconReward: {word!r} is no single word, so it would never be found. Use PatternReward for "
                    "phrases."
                )

    def of_text(self, response: str) -> float:
        """Sum or mean of the weights."""
        found = _WORD.findall(response.lower())
        total = sum(self.words.get(word, 0.0) for word in found)
        return total / max(len(found), 1) if self.mean else total


class ExactAnswerReward(Reward):
    r"""Whether the response's final answer is that of the data set, as in GSM8K (arXiv:2110.14168).

    The final answer is the last match of `pattern`, by default what stands behind `####` or in `\boxed{}`; where there
    is none, the last number in the text. Two answers that are numbers are compared as numbers, exactly (`1,000.0` is
    `$1000`, `15%` is 15); a number and a text that holds one number alone, too (`15 apples` is 15). All others are
    compared as text
    without case, outer space and full stop: so a fraction, `1/2`, is only itself. Braces within `\boxed{}` aren't
    parsed.

    Args:
        column: Column of the data set with the right answer, or a solution that ends in it.
        correct: Reward of the right answer.
        wrong: Reward of another answer.
        unanswered: Reward of a response without any answer.
        pattern: Regular expression with one group, the answer; see `final_answer`.
        last_number: Whether the last number counts where the response doesn't match. Off, the format is a must.

    Raises:
        ConfigurationError: The pattern is no regular expression, or hasn't exactly one group.
    """

    def __init__(
        self,
        column: str = "answer",
        correct: float = 1.0,
        wrong: float = 0.0,
        unanswered: float = 0.0,
        pattern: str = r"(?:####|\\boxed\{)[ \t]*([^\n}]+)",
        last_number: bool = True,
    ) -> None:
        super().__init__()
        self.column = column
        self.correct = correct
        self.wrong = wrong
        self.unanswered = unanswered
        self.pattern = compile_pattern(pattern, "ExactAnswerReward.pattern")
        self.last_number = last_number
        if self.pattern.groups != 1:
            raise ConfigurationError(
                f"ExactAnswerReward.pattern={pattern!r} has {self.pattern.groups} groups; it needs one, around the "
                "answer."
            )

    def score(self, completions: Completions) -> Scores:
        """(N,) float32.

        Raises:
            DataError: The column is missing, or an entry holds no answer.
        """
        column = read_column(completions, self.column, "ExactAnswerReward")
        pairs = zip(completions.responses, column, strict=True)
        return as_scores([self._compare(response, entry) for response, entry in pairs], completions)

    def _compare(self, response: str, entry: object) -> float:
        text = str(entry).strip()
        one_word = len(text.split()) <= 1  # it is the answer itself
        wanted = final_answer(text, self.pattern, last_number=not one_word)
        wanted = text if wanted is None else wanted
        if not wanted:
            raise DataError(
                f"The column {self.column!r} holds {entry!r}, in which there is no answer to compare with."
            )
        given = final_answer(response, self.pattern, last_number=self.last_number)
        if given is None:
            return self.unanswered
        return self.correct if same_answer(given, wanted) else self.wrong


def final_answer(text: str, pattern: re.Pattern[str], *, last_number: bool) -> str | None:
    r"""The last match's group, else the last number, else None.

    Example:
        >>> final_answer("3 + 4 = 7\n#### 7", re.compile(r"####\s*(.+)"), last_number=False)
        '7'
    """
    matches = pattern.findall(text)
    if not matches and last_number:
        matches = _NUMBER.findall(text)
    return str(matches[-1]).strip() if matches else None


def same_answer(left: str, right: str) -> bool:
    """Whether two answers are the same number, or the same text.

    Example:
        >>> (
        ...     same_answer("$1,000.00", "1000"),
        ...     same_answer("Paris.", "paris"),
        ...     same_answer("12", "13"),
        ... )
        (True, True, False)
        >>> (
        ...     same_answer("15 apples", "15"),
        ...     same_answer("15 or 16", "15"),
        ...     same_answer("room 5", "suite 5"),
        ... )
        (True, False, False)
    """
    numbers = [_number(left), _number(right)]
    if numbers == [None, None]:
        return _plain(left) == _plain(right)
    for i, answer in enumerate((left, right)):
        found = _NUMBER.findall(answer) if numbers[i] is None else []
        if len(found) == 1:
            numbers[i] = _number(found[0])
    return numbers[0] is not None and numbers[0] == numbers[1]


def compile_pattern(pattern: str, option: str) -> re.Pattern[str]:
    """Compile a regular expression that a user wrote.

    Raises:
        ConfigurationError: It isn't one.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(
            f"{option}={pattern!r} is no regular expression: {error}."
        ) from error


def _plain(answer: str) -> str:
    return answer.strip().rstrip(".").strip().lower()


def _number(answer: str) -> Decimal | None:
    text = _plain(answer).replace(",", "").replace("$", "").replace("\u2212", "-").removesuffix("%")
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _read_lexicon(file: Path) -> Mapping[str, float]:
    if not file.is_file():
        raise ConfigurationError(f"LexiconReward.file: there is no file {str(file)!r}.")
    words: dict[str, float] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        word, _, weight = line.partition("\t")
        try:
            words[word.strip()] = float(weight)
        except ValueError as error:
            raise DataError(
                f"{file}, line {number}: {line!r} is not a word, a tab and a number."
            ) from error
    return words
