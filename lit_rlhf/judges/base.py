"""What a judge is."""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from lit_rlhf.errors import ConfigurationError, ServiceError
from lit_rlhf.judges.cache import Answers
from lit_rlhf.judges.templates import SHIPPED, Template
from lit_rlhf.judges.verdicts import Verdict
from lit_rlhf.models import Backbone
from lit_rlhf.options import check_choice, check_option, is_number, is_text
from lit_rlhf.types import Text

Case: TypeAlias = Mapping[str, Text]
"""What a template reads: `prompt`, and `first` and `second` or `response`."""
Conversation: TypeAlias = list[dict[str, str]]
Answer: TypeAlias = dict[str, float]
"""Probability of each word of the verdict; they sum to at most 1. Of criteria asked together, `name: word` has 1/k."""
Failures: TypeAlias = Literal["raise", "null"] | None
_COUNTING = threading.Lock()  # none in the judge, which is copied and sent to processes


class Assessment(NamedTuple):
    """What a judge says of a case.

    Args:
        value: Of the verdict, of several criteria their weighted mean.
        criteria: The value by each criterion; empty for a judge without.
    """

    value: float
    criteria: Mapping[str, float]


@dataclass
class Tally:
    """What a judge has done so far.

    Args:
        asked: Questions that the model answered with a verdict.
        cached: Questions that the cache answered.
        failed: Questions without a verdict that could be read.
        prompt_tokens: Tokens of the questions that the model answered, those without a verdict included.
        completion_tokens: Tokens of its answers, likewise; of a local model, those of the verdict's words that it
            weighed.
        mass: Sum of the probability on the verdict's words, over all answers.
    """

    asked: int = 0
    cached: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    mass: float = 0.0

    def __str__(self) -> str:
        """One line."""
        mass = self.mass / max(self.asked + self.cached, 1)
        return (
            f"{self.asked} questions asked, {self.cached} known from before, {self.failed} failed; "
            f"{self.prompt_tokens} "
            f"tokens read, {self.completion_tokens} written; {mass:.0%} of the probability on the verdict's words"
        )


class Judge(ABC):
    """A question as a template, and a verdict: a number for each case that it is asked about.

    A kind of judge overrides `ask`, and `identity` by what its answers depend on.

    Args:
        template: The question: "pairwise" or "score" (shipped), or a Jinja template of your own; see `Template`.
        words: Worth of each word of the verdict, null for abstaining; see `Verdict`. Default: those of the shipped
            template, A (1), B (0) and tie (0.5) for a pairwise one of your own, 1 to 5 for another.
        system: A system message.
        cache: Directory in which answers are kept by the content of what was asked. None: nowhere.
        failures: What becomes of a question that fails or whose answer can't be read: "raise" ends it, "null" counts it
            and goes on without a verdict.
        pattern: Where answers are read as text: a regular expression with one group, the word; see `Verdict`.
        criteria: A rubric: what is judged, by name; a template of your own must read `criterion`, or `criteria` where
            all are asked `together`. None: no rubric.
        together: Ask for all criteria in one question, whose answer is read as text and says `name: word` of each: k
            times fewer questions, and each criterion seen beside the others. A criterion of which it says nothing is a
            failure, see `failures`, and has no verdict; such an answer is not kept in the cache.
        weights: Of the criteria, above 0, by the same names; 1 for those left out.

    Raises:
        ConfigurationError: The template, the words or the rubric can't be used.
    """

    def __init__(
        self,
        template: str = "pairwise",
        words: dict[str, float | None] | None = None,
        system: str | None = None,
        cache: Path | None = None,
        failures: Failures = "raise",
        pattern: str | None = None,
        criteria: dict[str, str] | None = None,
        weights: dict[str, float] | None = None,
        together: bool = False,
    ) -> None:
        self.template = Template(SHIPPED[template][0] if template in SHIPPED else template, system)
        usual = SHIPPED["pairwise" if self.template.pairwise else "score"][1]
        self.verdict = Verdict(words or usual, pattern)
        self.criteria, self.weights = criteria or {}, weights or {}
        self.together = together
        self._check_rubric()
        self.cache = cache
        # YAML and the command line make None of the word null.
        self.failures = "null" if failures is None else failures
        check_choice(self, "failures", self.failures, "raise", "null")
        self.tally = Tally()
        self.complaint = ""  # of the last failure
        self._answers: Answers | None = None

    @property
    def pairwise(self) -> bool:
        """Whether it compares two answers, the first being better where its value is high."""
        return self.template.pairwise

    def attach(self, backbone: Backbone) -> None:
        """Meet the policy, where the judge is a part of its training."""

    def to(self, device: torch.device) -> None:
        """Compute there."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What answers depend on beside the question, as JSON: the model, and how it is asked."""

    @abstractmethod
    def ask(self, conversations: Mapping[str, Conversation]) -> Mapping[str, Answer | None]:
        """Ask the model; each answer is handed to `keep` as soon as it is there, each failure to `fail`.

        Args:
            conversations: By their key.

        Returns:
            The answer to each key; None where it failed.
        """

    def judge(self, cases: Sequence[Case]) -> list[float | None]:
        """The value of the verdict on each case; None where there is none. See `assess`."""
        return [None if found is None else found.value for found in self.assess(cases)]

    def assess(self, cases: Sequence[Case]) -> list[Assessment | None]:
        """What the judge says of each case; None where it abstains, or failed and `failures` is "null".

        Of several criteria those count that have a verdict. Questions that are equal are asked once, those that the
        cache knows not at all.

        Raises:
            ServiceError: A question failed, and `failures` is "raise". The answers that came are in the cache.
            ConfigurationError: Every question would fail.
        """
        found: list[Assessment | None] = []
        for values in self._ask_together(cases) if self.together else self._ask_apart(cases):
            known = {name: value for name, value in values.items() if value is not None}
            weights = {name: self.weights.get(name, 1.0) for name in known}
            if not known:
                found.append(None)
                continue
            mean = sum(weights[name] * known[name] for name in known) / sum(weights.values())
            found.append(Assessment(mean, known if self.criteria else {}))
        return found

    def _ask_apart(self, cases: Sequence[Case]) -> Iterator[dict[str, float | None]]:
        """Of each case the value by each criterion, or the one value under ""."""
        asked, words = self.criteria or {"": ""}, list(self.verdict.words)
        every = [
            self.template.messages(case, words, what) for case in cases for what in asked.values()
        ]
        said = iter(self._answers_to(every))
        for _ in cases:
            yield {name: self._value(next(said)) for name in asked}

    def _ask_together(self, cases: Sequence[Case]) -> Iterator[dict[str, float | None]]:
        words = list(self.verdict.words)
        every = [self.template.messages(case, words, criteria=self.criteria) for case in cases]
        for said in self._answers_to(every, list(self.criteria)):
            each = said or {}
            yield {
                name: self._value({w: each[s] for w in words if (s := _line(name, w)) in each})
                for name in self.criteria
            }

    def _value(self, answer: Answer | None) -> float | None:
        return self.verdict.value(answer) if answer else None

    def _answers_to(self, asked: Sequence[Conversation], *how: object) -> list[Answer | None]:
        if self.cache is not None and self._answers is None:
            self._answers = Answers(self.cache)
        identity = [self.identity(), list(self.verdict.words), *how]
        keys = [Answers.key([*identity, messages]) for messages in asked]
        questions = dict(zip(keys, asked, strict=True))
        known = {k: a for k in questions if self._answers and (a := self._answers.get(k))}
        new = {key: messages for key, messages in questions.items() if key not in known}
        self.tally.cached += len(known)
        self.tally.mass += sum(sum(answer.values()) for answer in known.values())
        answers = {**known, **(self.ask(new) if new else {})}
        return [answers[key] for key in keys]

    def _check_rubric(self) -> None:
        unknown = sorted(set(self.weights) - set(self.criteria))
        among = f"of criteria {list(self.criteria)}"
        check_option(not unknown, self, "weights", self.weights, among)
        right = all(is_number(w) and 0 < w < math.inf for w in self.weights.values())
        check_option(right, self, "weights", self.weights, "numbers above 0")
        told = all(is_text(name) and is_text(what) for name, what in self.criteria.items())
        check_option(told, self, "criteria", self.criteria, "what is judged, by name")
        wanted = "criteria" if self.together else "criterion"
        if self.criteria and wanted not in self.template.reads:
            raise ConfigurationError(
                f"{type(self).__name__} has criteria {list(self.criteria)}, and its template doesn't read `{wanted}`: "
                f"no question would name them. Put {{{{ {wanted} }}}} into it, or take a shipped one."
            )
        apart = len({name.casefold() for name in self.criteria}) == len(self.criteria)
        may = not self.together or (bool(self.criteria) and apart and self.verdict.pattern is None)
        what = "false without criteria, with a pattern, or where names of criteria differ by case alone"
        check_option(may, self, "together", self.together, what)

    def check_mode(self, mode: str) -> None:
        """Refuse a mode that there isn't, or what is read in texts where none is written.

        Raises:
            ConfigurationError: Says which.
        """
        check_choice(self, "mode", mode, "logprobs", "text")
        for name, set_ in (("pattern", self.verdict.pattern), ("together", self.together)):
            what = "left out by log-probs, where no text is read; or set mode: text"
            check_option(mode == "text" or not set_, self, name, set_, what)

    def read(self, said: str, *, cut: bool = False) -> Answer:
        """The word of the verdict in a text, or a word for each criterion that is asked `together`; {} if none.

        Args:
            said: The text.
            cut: Whether it ended at its length limit.
        """
        if self.together:
            words = self.verdict.read_each(said, self.criteria)
            return {_line(name, word): 1 / len(self.criteria) for name, word in words.items()}
        word = self.verdict.read(said, cut=cut)
        return {} if word is None else {word: 1.0}

    def keep(self, key: str, answer: Answer, said: str, read: int, written: int) -> Answer | None:
        """Count an answer and put it into the cache; or fail, where it has no word or says nothing of a criterion.

        Args:
            key: Of the question.
            answer: Probabilities of the words.
            said: What they were read in, for messages.
            read: Tokens of the question.
            written: Tokens of the answer.

        Returns:
            What can be used of it: None where it has no word.

        Raises:
            ServiceError: Something is missing, and `failures` is "raise".
        """
        with _COUNTING:
            self.tally.prompt_tokens += read
            self.tally.completion_tokens += written
        some = 0 < sum(answer.values()) < math.inf
        heard = {line.rpartition(": ")[0] for line in answer}
        missing = [name for name in self.criteria if name not in heard] if self.together else []
        if missing or not some:
            self.fail(
                ServiceError(
                    f"{self} gave no verdict{f' on {missing}' if missing else ''}: none (or several) of the words "
                    f"{list(self.verdict.words)} in {said[-300:]!r}. Set failures: null to go on without, leave more "
                    "room for the answer, or change the template."
                )
            )
            return answer if some else None
        with _COUNTING:
            self.tally.asked += 1
            self.tally.mass += sum(answer.values())
        if self._answers is not None:
            self._answers.put(key, answer)
        return answer

    def fail(self, error: ServiceError) -> None:
        """Count a failure.

        Raises:
            ServiceError: It, where `failures` is "raise".
        """
        with _COUNTING:
            self.tally.failed += 1
            self.complaint = str(error)
        if self.failures == "raise":
            raise error

    def __str__(self) -> str:
        """Who it is, for messages."""
        return "The judge"


def _line(criterion: str, word: str) -> str:
    return f"{criterion}: {word}"
