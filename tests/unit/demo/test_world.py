"""The world of reviews: utilities by hand, the best text by brute force, raters and writers by frequency."""

import math
import random
from itertools import pairwise, product

import pytest

from lit_rlhf.demo.world import (
    ADJECTIVES,
    ASIDES,
    INTENSIFIERS,
    TASTES,
    TOPICS,
    World,
    sentences_of,
    topic_of,
)
from lit_rlhf.demo.world_data import (
    Raters,
    WorldData,
    Writers,
    bayes_accuracy,
    prompt_pool,
    world_tokenizer,
)

HOTEL = "review of the old hotel :"
PLAIN = World(saturation=1e9, word_cost=0.0, pointless_cost=0.0)
"""Adds up what is said and nothing else."""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0.0),
        ("the room was good .", 1.0),
        ("the room was good", 1.0),
        ("i found the room good .", 1.0),
        ("the room was very good .", 1.5),
        ("i found the room rather good .", 0.6),
        ("the room was not good .", -0.6),
        ("the room was not very bad .", 0.6 * 1.5 * 1.3),
        ("the plot was good .", 0.0),
        ("the room was quiet .", 1.0),
        ("the room was good . the staff was great .", 2.3),
        ("the room was good . the room was great .", 1.0),
        ("the room was good . the staff was good .", 2.0),
        ("the room was good . the room was good . the room was good .", 1.0),
        ("the room was awful . the room was superb .", -2.0),
        ("my sister came with us . the room was good .", 1.0),
    ],
)
def test_what_sentences_add_up_to(text: str, value: float) -> None:
    assert PLAIN.utility(HOTEL, text) == pytest.approx(value)


def test_taste_depends_on_the_topic() -> None:
    film = "review of the old film :"
    assert PLAIN.utility(film, "the plot was loud .") == 1.0
    assert PLAIN.utility(HOTEL, "the room was loud .") == -1.0


def test_saturation_and_costs() -> None:
    world = World()
    text = "the room was very superb . the staff was not bad . good good ."
    total = 1.5 * 2.0 + 0.6 * 1.3
    expected = 3 * math.tanh(total / 3) - 0.04 * 15 - 1.0
    assert world.utility(HOTEL, text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "nonsense",
    [
        "room room",
        "the room was",
        "the sky was good",
        "the room was not",
        "very good",
        "the plot was good",
    ],
)
def test_what_is_beside_the_point_costs(nonsense: str) -> None:
    world = World(word_cost=0.0)
    assert world.utility(HOTEL, f"the room was good . {nonsense} .") == pytest.approx(
        world.utility(HOTEL, "the room was good .") - 1.0
    )


def test_prompt_without_topic_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"names none of the topics film, hotel, phone, restaurant"
    ):
        World().utility("review of the castle :", "the room was good .")


def _all_judgements(topic: str) -> list[str]:
    degrees = ("", *INTENSIFIERS)
    forms = [
        f"the {{}} was {'not ' * negated}{degree} {{}} ."
        for negated, degree in product((0, 1), degrees)
    ]
    forms += [f"i found the {{}} {degree} {{}} ." for degree in degrees]
    aspects = [*TOPICS[topic], *TOPICS["film" if topic != "film" else "hotel"][:1]]
    words = product(forms, aspects, (*ADJECTIVES, *TASTES))
    return [" ".join(form.format(aspect, adjective).split()) for form, aspect, adjective in words]


@pytest.mark.parametrize(("topic", "max_words"), [("hotel", 6), ("hotel", 12), ("film", 11)])
def test_best_utility_is_that_of_brute_force(topic: str, max_words: int) -> None:
    """Over all texts of one or two judgements (two is what fits) and asides, also those the search leaves out."""
    world = World(max_words=max_words)
    prompt = f"about the new {topic} :"
    singles = [*_all_judgements(topic), f"{ASIDES[0]} ."]
    # A second sentence helps most where the first is good: pair the better half with everything.
    promising = sorted(singles, key=lambda text: world.utility(prompt, text), reverse=True)[:60]
    texts = ["", *singles, *(f"{one} {two}" for one in promising for two in singles)]
    allowed = [text for text in texts if len(text.split()) <= max_words]
    assert world.best_utility(prompt) == pytest.approx(
        max(world.utility(prompt, text) for text in allowed)
    )


def test_nobody_writes_better_than_the_best() -> None:
    data = WorldData()
    rows = data.demonstrations(2000)
    world = data.world
    for row in rows:
        assert (
            world.utility(row["prompt"], row["completion"])
            <= world.best_utility(row["prompt"]) + 1e-12
        )


def test_best_is_neither_repetition_nor_length() -> None:
    world = World()
    best = "the room was very superb . the staff was very superb ."
    assert world.utility(HOTEL, best) == pytest.approx(world.best_utility(HOTEL))
    assert world.utility(HOTEL, f"{best} the room was very superb .") < world.utility(HOTEL, best)
    assert (
        world.utility(HOTEL, "the room was very superb . " * 2) < world.utility(HOTEL, best) - 0.5
    )


def test_writers_are_neutral_and_understood() -> None:
    data = WorldData(writers=Writers(slip=0.0))
    rows = data.demonstrations(3000)
    sentences = [sentence for row in rows for sentence in sentences_of(row["completion"])]
    assert all(
        data.world.read(sentence) is not None or sentence in ASIDES for sentence in sentences
    )
    mean = sum(
        data.world.utilities((r["prompt"] for r in rows), (r["completion"] for r in rows))
    ) / len(rows)
    assert abs(mean) < 0.6  # half of it is what words cost
    assert {topic_of(row["prompt"]) for row in rows} == set(TOPICS)


def test_writers_repeat_themselves_as_often_as_they_are_told_to() -> None:
    rng = random.Random(0)
    careful = Writers(sentences=(0.0, 1.0), aside=0.0, slip=0.0, repeating=0.0)
    for _ in range(200):
        said = [World().read(sentence) for sentence in sentences_of(careful.write(HOTEL, rng))]
        assert len({judgement.aspect for judgement in said if judgement}) == 2


def test_slips_are_words_written_twice() -> None:
    rng = random.Random(0)
    for slip, seen in ((0.0, 0), (1.0, 300)):
        texts = [Writers(slip=slip).write(HOTEL, rng).split() for _ in range(300)]
        assert sum(any(a == b for a, b in pairwise(words)) for words in texts) == seen


def test_raters_choose_as_often_as_bradley_and_terry_say() -> None:
    data = WorldData(raters=Raters(temperature=1.0))
    rows = data.pairs(6000)
    margins = [float(row["utility_margin"]) for row in rows]
    expected = sum(1 / (1 + math.exp(-abs(margin))) for margin in margins) / len(margins)
    spread = math.sqrt(
        sum(p * (1 - p) for p in (1 / (1 + math.exp(-abs(m))) for m in margins))
    ) / len(margins)
    assert abs(bayes_accuracy(rows) - expected) < 4 * spread


def test_share_of_raters_is_the_soft_label() -> None:
    rows = WorldData().pairs(3000, raters=5)
    shares = [float(row["p_chosen"]) for row in rows]
    assert set(shares) <= {0.6, 0.8, 1.0}
    expected = [Raters().p_first(float(row["utility_margin"])) for row in rows]
    clear = [share for share, p in zip(shares, expected, strict=True) if p > 0.99]
    close = [share for share, p in zip(shares, expected, strict=True) if 0.45 < p < 0.55]
    assert sum(clear) / len(clear) > 0.98
    assert (
        0.64 < sum(close) / len(close) < 0.74
    )  # E max(votes, 5 - votes) / 5 = 0.6875 for a fair coin
    assert all(row["p_chosen"] == 1.0 for row in WorldData().pairs(50))


def test_pairs_differ_and_their_margin_is_that_of_the_utilities() -> None:
    data = WorldData()
    for row in data.pairs(300):
        prompt, chosen, rejected = str(row["prompt"]), str(row["chosen"]), str(row["rejected"])
        assert chosen != rejected
        margin = data.world.utility(prompt, chosen) - data.world.utility(prompt, rejected)
        assert row["utility_margin"] == pytest.approx(margin)


def test_rows_depend_on_the_seed_alone() -> None:
    assert WorldData(seed=3).pairs(20) == WorldData(seed=3).pairs(20)
    assert WorldData(seed=3).pairs(20) != WorldData(seed=4).pairs(20)


def test_heldout_prompts_are_not_trained_on() -> None:
    data = WorldData()
    train, heldout = set(prompt_pool("train")), set(prompt_pool("heldout"))
    assert not train & heldout
    assert {topic_of(prompt) for prompt in heldout} == set(TOPICS)
    assert {row["prompt"] for row in data.prompts(500, "heldout")} <= heldout
    assert {row["prompt"] for row in data.demonstrations(500)} <= train
    assert {row["prompt"] for row in data.pairs(500, "heldout")} <= heldout


def test_tokenizer_knows_every_word_and_gives_texts_back() -> None:
    tokenizer = world_tokenizer()
    for row in WorldData().demonstrations(200):
        for text in row.values():
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
