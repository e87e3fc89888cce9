"""A small world of short reviews whose utility is known exactly, so that learning from preferences can be checked.

A prompt names a topic (`review of the hotel :`); a text is a row of sentences that judge aspects of a topic
(`the view was not very good .`) or tell something beside the point (`we went there on monday .`). What a reader gets
from a text is a number, `World.utility`; raters, data sets and the tokenizer are in `lit_rlhf.demo.world_data`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

TOPICS: Mapping[str, tuple[str, ...]] = {
    "film": ("plot", "cast"),
    "hotel": ("room", "staff"),
    "phone": ("screen", "battery"),
    "restaurant": ("food", "service"),
}
"""The aspects of each topic."""

ADJECTIVES: Mapping[str, float] = {
    "superb": 2.0, "lovely": 1.6, "great": 1.3, "good": 1.0, "pleasant": 0.8, "decent": 0.5,
    "mediocre": -0.5, "dull": -0.8, "poor": -1.0, "bad": -1.3, "dreadful": -1.6, "awful": -2.0,
}  # fmt: skip
"""What an adjective is worth on any topic."""

TASTES: Mapping[str, tuple[float, ...]] = {
    "loud": (1.0, -1.0, -1.0, -1.0),
    "quiet": (-1.0, 1.0, 1.0, 1.0),
}
"""Adjectives whose worth depends on the topic, in the order of `TOPICS`."""

INTENSIFIERS: Mapping[str, float] = {"very": 1.5, "rather": 0.6}
ASIDES: tuple[str, ...] = (
    "we went there on monday",
    "my sister came with us",
    "it rained all day",
    "i read about it before",
)  # fmt: skip
"""Sentences that say nothing about the topic."""

OPENINGS: tuple[str, ...] = (
    "review of the",
    "my thoughts on the",
    "about the",
    "notes on that",
    "a word on the",
)
KINDS: tuple[str, ...] = ("old", "new", "small", "big", "famous", "strange", "local", "cheap")
"""What prompts are made of beside the topic; it changes nothing."""


_ALL_ASPECTS = frozenset(aspect for aspects in TOPICS.values() for aspect in aspects)


@dataclass(frozen=True)
class Judgement:
    """A sentence that says something of an aspect."""

    aspect: str
    adjective: str
    strength: float
    """Factor on the adjective's worth: of the intensifier, and below zero when negated."""


@dataclass(frozen=True)
class World:
    r"""The utility of a text for a prompt, and the best that can be reached.

    With `w` the worth of an adjective on the prompt's topic and `s` the factor of intensifier and negation, a text of
    `n` words with `m` sentences beside the point is worth

    .. math:: u = S \tanh\Big(\frac{1}{S} \sum_j s_j w_j\Big) - c\,n - p\,m

    An aspect counts once, as judged first. Beside the point is what is outside the grammar and what judges an aspect of
    another topic. So the best text praises each aspect once and stops: neither repetition nor length pays.

    Attributes:
        saturation: S; praise (or blame) beyond it adds little.
        word_cost: c, per word; the full stops count.
        pointless_cost: p, per sentence beside the point.
        negation: Factor of `not`, below zero.
        max_words: Longest text considered by `best_utility`.
    """

    saturation: float = 3.0
    word_cost: float = 0.04
    pointless_cost: float = 1.0
    negation: float = -0.6
    max_words: int = 17
    _best: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    def utility(self, prompt: str, text: str) -> float:
        """What a text is worth to someone who gave the prompt.

        Example:
            >>> world = World()
            >>> good, bad = "the room was superb .", "the room was awful ."
            >>> world.utility("review of the hotel :", good) > world.utility(
            ...     "review of the hotel :", bad
            ... )
            True
        """
        topic = topic_of(prompt)
        total, pointless = 0.0, 0
        judged: set[str] = set()
        for sentence in sentences_of(text):
            judgement = self.read(sentence)
            if judgement is None:
                pointless += sentence not in ASIDES
                continue
            if judgement.aspect not in TOPICS[topic]:
                pointless += 1
            elif judgement.aspect not in judged:
                total += judgement.strength * worth(topic, judgement.adjective)
            judged.add(judgement.aspect)
        gained = self.saturation * math.tanh(total / self.saturation)
        return gained - self.word_cost * len(text.split()) - self.pointless_cost * pointless

    def utilities(self, prompts: Iterable[str], texts: Iterable[str]) -> list[float]:
        """`utility` of each pair."""
        return [self.utility(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    def read(self, sentence: str) -> Judgement | None:
        """What a sentence (without its full stop) says of an aspect; None for an aside or outside the grammar.

        The grammar: `the ASPECT was [not] [very|rather] ADJECTIVE` and `i found the ASPECT [very|rather] ADJECTIVE`.
        """
        match sentence.split():
            case ["the", aspect, "was", "not", *rest]:
                factor = self.negation
            case ["the", aspect, "was", *rest] | ["i", "found", "the", aspect, *rest]:
                factor = 1.0
            case _:
                return None
        if len(rest) == 2 and rest[0] in INTENSIFIERS:
            factor *= INTENSIFIERS[rest[0]]
            rest = rest[1:]
        known = len(rest) == 1 and rest[0] in {*ADJECTIVES, *TASTES} and aspect in _ALL_ASPECTS
        return Judgement(aspect, rest[0], factor) if known else None

    def best_utility(self, prompt: str) -> float:
        """The highest utility any text of at most `max_words` words has for a prompt; an exhaustive search.

        Asides, sentences beside the point and the longer form `i found` only cost, so the best text is a row of
        `the ASPECT was ... .`, one for each of some aspects of the topic. Of two judgements of one length the stronger
        is the better, so one per length is left to choose for each aspect. All choices are tried.
        """
        topic = topic_of(prompt)
        if topic not in self._best:
            choices = product([(0.0, 0), *self._strongest(topic)], repeat=len(TOPICS[topic]))
            sums = ((sum(v for v, _ in chosen), sum(n for _, n in chosen)) for chosen in choices)
            self._best[topic] = max(
                self.saturation * math.tanh(value / self.saturation) - self.word_cost * words
                for value, words in sums
                if words <= self.max_words
            )
        return self._best[topic]

    def gold_max(self, prompts: Sequence[str]) -> float:
        """Mean of `best_utility` over prompts."""
        return sum(map(self.best_utility, prompts)) / len(prompts)

    def _strongest(self, topic: str) -> list[tuple[float, int]]:
        """(value, words) of the strongest judgement of each length."""
        shortest = len(("the", "ASPECT", "was", "ADJECTIVE", "."))
        best: dict[int, float] = {}
        intensities = (("", 1.0), *INTENSIFIERS.items())
        for adjective in (*ADJECTIVES, *TASTES):
            for negated, (word, scale) in product((False, True), intensities):
                value = worth(topic, adjective) * scale * (self.negation if negated else 1.0)
                length = shortest + negated + bool(word)
                best[length] = max(value, best.get(length, value))
        return [(value, length) for length, value in best.items()]


def worth(topic: str, adjective: str) -> float:
    """What an adjective is worth on a topic, before intensifiers and negation."""
    if adjective in TASTES:
        return TASTES[adjective][list(TOPICS).index(topic)]
    return ADJECTIVES[adjective]


def topic_of(prompt: str) -> str:
    """The topic a prompt names.

    Raises:
        ValueError: It names none.
    """
    for word in prompt.split():
        if word in TOPICS:
            return word
    raise ValueError(f"prompt {prompt!r} names none of the topics {', '.join(TOPICS)}")


def sentences_of(text: str) -> list[str]:
    """The sentences of a text without their full stops; an unfinished last one is one too."""
    return [sentence for part in text.split(".") if (sentence := " ".join(part.split()))]
