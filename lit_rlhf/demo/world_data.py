"""What people in the small world of reviews write, prefer and ask: rows for data sets, and a tokenizer.

Everything is a function of a seed. Rows are plain dictionaries with the columns that the DataModules read.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

from transformers import PreTrainedTokenizerFast

from lit_rlhf.demo.world import (
    ADJECTIVES,
    ASIDES,
    INTENSIFIERS,
    KINDS,
    OPENINGS,
    TASTES,
    TOPICS,
    World,
    topic_of,
    worth,
)
from lit_rlhf.seeding import stable_hash
from lit_rlhf.testing.tokenizers import make_word_tokenizer

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Writers:
    """People who write without trying to please: praise and blame in even shares, some of it beside the point.

    Attributes:
        sentences: Probabilities of writing 1, 2, 3, ... sentences.
        aside: Probability that a sentence is an aside.
        negated: Probability of `not` where the form allows it.
        intensified: Probability of an intensifier.
        found: Probability of the form `i found the ...`.
        slip: Probability that one word of a review is written twice. Without such slips raters never judge text outside
            the grammar, and a policy would find what the reward model mistakes for good there.
        repeating: Probability that a sentence pays no heed to which aspects were judged before.
        mood: Spread of how much a writer likes the thing at hand; a mood m makes an adjective of worth w more likely by
            exp(m w). 0 draws all adjectives alike.
    """

    sentences: tuple[float, ...] = (0.45, 0.45, 0.1)
    aside: float = 0.15
    negated: float = 0.15
    intensified: float = 0.35
    found: float = 0.25
    slip: float = 0.05
    repeating: float = 0.15
    mood: float = 1.0

    def write(self, prompt: str, rng: random.Random) -> str:
        """One review."""
        topic, mood = topic_of(prompt), rng.gauss(0.0, self.mood)
        words = [*ADJECTIVES, *TASTES]
        likely = {word: math.exp(mood * worth(topic, word)) for word in words}
        number = rng.choices(range(1, len(self.sentences) + 1), self.sentences)[0]
        judged: set[str] = set()
        sentences = [self._sentence(topic, likely, judged, rng) for _ in range(number)]
        review = " ".join(f"{sentence} ." for sentence in sentences).split()
        if rng.random() < self.slip:
            slipped = rng.randrange(len(review))
            review.insert(slipped, review[slipped])
        return " ".join(review)

    def _sentence(
        self, topic: str, likely: Mapping[str, float], judged: set[str], rng: random.Random
    ) -> str:
        if rng.random() < self.aside:
            return rng.choice(ASIDES)
        new = [aspect for aspect in TOPICS[topic] if aspect not in judged]
        aspect = rng.choice(TOPICS[topic] if not new or rng.random() < self.repeating else new)
        judged.add(aspect)
        words = rng.choices(list(likely), list(likely.values()))
        if rng.random() < self.intensified:
            words.insert(0, rng.choice(list(INTENSIFIERS)))
        if rng.random() < self.found:
            return " ".join(("i found the", aspect, *words))
        if rng.random() < self.negated:
            words.insert(0, "not")
        return " ".join(("the", aspect, "was", *words))


@dataclass(frozen=True)
class Raters:
    r"""Bradley-Terry raters: the better text wins with probability :math:`\sigma((u_1 - u_2) / T)`.

    Attributes:
        temperature: T, in units of utility; higher means noisier choices.
    """

    temperature: float = 1.0

    def p_first(self, margin: float) -> float:
        """Probability that a text is preferred to one whose utility is lower by a margin."""
        return 1 / (1 + math.exp(-margin / self.temperature))


@dataclass(frozen=True)
class WorldData:
    """Data sets of a world.

    Attributes:
        world: Gives the utilities.
        writers: Write demonstrations and the texts of pairs.
        raters: Choose between the texts of a pair.
        seed: Everything is a function of it and of the arguments.
    """

    world: World = field(default_factory=World)
    writers: Writers = field(default_factory=Writers)
    raters: Raters = field(default_factory=Raters)
    seed: int = 0

    def prompts(self, number: int, split: Split = "train") -> list[dict[str, str]]:
        """Rows with `prompt`."""
        rng, pool = self._rng("prompts", split), prompt_pool(split)
        return [{"prompt": rng.choice(pool)} for _ in range(number)]

    def demonstrations(self, number: int, split: Split = "train") -> list[dict[str, str]]:
        """Rows with `prompt` and `completion`."""
        rng, pool = self._rng("demonstrations", split), prompt_pool(split)
        prompts = rng.choices(pool, k=number)
        return [
            {"prompt": prompt, "completion": self.writers.write(prompt, rng)} for prompt in prompts
        ]

    def pairs(
        self, number: int, split: Split = "train", raters: int = 1
    ) -> list[dict[str, str | float]]:
        """Rows with `prompt`, `chosen`, `rejected` (two different texts), `p_chosen` and `utility_margin`.

        Args:
            number: Of rows.
            split: Whose prompts.
            raters: How many choose between the texts of a pair, each for themselves; odd. `chosen` is what most of them
                prefer and `p_chosen` their share. `utility_margin`, which is negative where they prefer the worse text,
                is for evaluation.
        """
        rng, pool = self._rng("pairs", split), prompt_pool(split)
        rows: list[dict[str, str | float]] = []
        while len(rows) < number:
            prompt = rng.choice(pool)
            texts = (self.writers.write(prompt, rng), self.writers.write(prompt, rng))
            if texts[0] == texts[1]:
                continue
            margin = self.world.utility(prompt, texts[0]) - self.world.utility(prompt, texts[1])
            share = sum(rng.random() < self.raters.p_first(margin) for _ in range(raters)) / raters
            if share < 0.5:
                texts, margin, share = texts[::-1], -margin, 1 - share
            row = {"prompt": prompt, "chosen": texts[0], "rejected": texts[1]}
            rows.append({**row, "p_chosen": share, "utility_margin": margin})
        return rows

    def _rng(self, purpose: str, split: Split) -> random.Random:
        return random.Random(stable_hash(self.seed, purpose, split))  # noqa: S311  (no secrets)


def bayes_accuracy(pairs: Sequence[Mapping[str, str | float]]) -> float:
    """Accuracy of the true utility on pairs with their noisy choices: what no reward model can beat but by luck.

    Example:
        >>> bayes_accuracy([{"utility_margin": 1.0}, {"utility_margin": -0.5}])
        0.5
    """
    margins = [float(row["utility_margin"]) for row in pairs]
    return sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins)


def world_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word of the world; texts come back with single spaces."""
    aspects = [aspect for own in TOPICS.values() for aspect in own]
    words = (*KINDS, *TOPICS, *aspects, *ADJECTIVES, *TASTES, *INTENSIFIERS)
    lines = (*OPENINGS, *ASIDES, *words, "i found the was not . :")
    return make_word_tokenizer(word for line in lines for word in line.split())


def prompt_pool(split: Split) -> list[str]:
    """The prompts of a side: "heldout" has a fifth of all there are, "train" the others.

    Example:
        >>> len(prompt_pool("train")) + len(prompt_pool("heldout"))
        160
    """
    every = [
        f"{opening} {kind} {topic} :" for opening, kind, topic in product(OPENINGS, KINDS, TOPICS)
    ]
    return [prompt for prompt in every if (stable_hash(prompt) % 5 == 0) == (split == "heldout")]
