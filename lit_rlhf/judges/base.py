"""What a judge is."""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from lit_rlhf.errors import ConfigurationError, ServiceError
from lit_rlhf.judges.cache import Answers
from lit_rlhf.judges.templates import SHIPPED, Template
from lit_rlhf.judges.verdicts import Verdict
from lit_rlhf.models import Backbone
from lit_rlhf.options import check_option, is_number, is_text
from lit_rlhf.types import Text

Case: TypeAlias = Mapping[str, Text]
"""What a template reads: `prompt`, and `first` and `second` or `response`."""
Conversation: TypeAlias = list[dict[str, str]]
Answer: TypeAlias = dict[str, float]
"""Probability of each word of the verdict; they sum to at most 1."""
Failures: TypeAlias = Literal["raise", "null"]
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
        asked: Questions that the model answered.
        cached: Questions that the cache answered.
        failed: Questions without a verdict that could be read.
        prompt_tokens: Tokens of the questions that the model answered.
        completion_tokens: Tokens of its answers; of a local model, those of the verdict's words that it weighed.
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
        criteria: A rubric: what is judged, by name, each in a question of its own; a template of your own must read
            `criterion`. None: one question for all.
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
    ) -> None:
        self.template = Template(SHIPPED[template][0] if template in SHIPPED else template, system)
        usual = SHIPPED["pairwise" if self.template.pairwise else "score"][1]
        self.verdict = Verdict(words or usual, pattern)
        self.criteria, self.weights = criteria or {}, weights or {}
        self._check_rubric()
        self.cache = cache
        self.failures = failures
        check_option(failures in ("raise", "null"), self, "failures", failures, "raise or null")
        self.tally = Tally()
        self._answers: Answers | None = None

    @property
    def pairwise(self) -> bool:
        """Whether it compares two answers, the first being better where its value is high."""
        return self.template.pairwise

    def attach(self, backbone: Backbone) -> None:  # noqa: B027  (a server has no policy to meet,)
        """Meet the policy, where the judge is a part of its training."""

    def to(self, device: torch.device) -> None:  # noqa: B027  (and nothing to move)
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
        names = list(self.criteria) or [""]
        values = self._values(
            [(case, self.criteria.get(name, "")) for case in cases for name in names]
        )
        found: list[Assessment | None] = []
        for start in range(0, len(values), len(names)):
            said = zip(names, values[start : start + len(names)], strict=True)
            known = {name: value for name, value in said if value is not None}
            weights = {name: self.weights.get(name, 1.0) for name in known}
            if not known:
                found.append(None)
                continue
            mean = sum(weights[name] * known[name] for name in known) / sum(weights.values())
            found.append(Assessment(mean, known if self.criteria else {}))
        return found

    def _values(self, cases: Sequence[tuple[Case, str]]) -> list[float | None]:
        if self.cache is not None and self._answers is None:
            self._answers = Answers(self.cache)
        words, identity = list(self.verdict.words), self.identity()
        asked = [self.template.messages(case, words, criterion) for case, criterion in cases]
        keys = [Answers.key([identity, words, messages]) for messages in asked]
        questions = dict(zip(keys, asked, strict=True))
        known = {k: a for k in questions if self._answers and (a := self._answers.get(k))}
        new = {key: messages for key, messages in questions.items() if key not in known}
        self.tally.cached += len(known)
        self.tally.mass += sum(sum(answer.values()) for answer in known.values())
        answers = {**known, **(self.ask(new) if new else {})}
        return [None if (a := answers[key]) is None else self.verdict.value(a) for key in keys]

    def _check_rubric(self) -> None:
        unknown = sorted(set(self.weights) - set(self.criteria))
        check_option(
            not unknown, self, "weights", self.weights, f"of criteria {list(self.criteria)}"
        )
        right = all(is_number(w) and 0 < w < math.inf for w in self.weights.values())
        check_option(right, self, "weights", self.weights, "numbers above 0")
        told = all(is_text(name) and is_text(what) for name, what in self.criteria.items())
        check_option(told, self, "criteria", self.criteria, "what is judged, by name")
        if self.criteria and "criterion" not in self.template.reads:
            raise ConfigurationError(
                f"{type(self).__name__} has criteria {list(self.criteria)}, and its template doesn't read `criterion`: "
                "every question would be the same. Put {{ criterion }} into it, or take a shipped one."
            )

    def keep(self, key: str, answer: Answer, read: int, written: int) -> Answer:
        """Count an answer and put it into the cache.

        Args:
            key: Of the question.
            answer: Probabilities of the words.
            read: Tokens of the question.
            written: Tokens of the answer.
        """
        with _COUNTING:
            self.tally.asked += 1
            self.tally.prompt_tokens += read
            self.tally.completion_tokens += written
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
        if self.failures == "raise":
            raise error
