"""Scores of rewards of one's own, held to their shape before anything reads them."""

from collections.abc import Callable

import pytest
import torch

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.modules.collect import read_completions, score_completions
from lit_rlhf.rewards import (
    ConstrainedReward,
    MonitoredReward,
    NormalizedReward,
    Reward,
    WeightedSum,
)
from lit_rlhf.testing import make_tokenizer
from lit_rlhf.types import Completions, Generation, Prompts, Scores
from tests.reference.completions import make_completions
from tests.unit.modules.policies import CountVowels


class Given(Reward):
    """Scores as they are given."""

    def __init__(self, make: Callable[[], Scores]) -> None:
        super().__init__()
        self.make = make

    def score(self, completions: Completions) -> Scores:
        return self.make()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Scores(torch.ones(1)), r"total of the shape \(1,\) for 2 completions"),
        (lambda: Scores(torch.ones(2, 1)), r"total of the shape \(2, 1\)"),
        (lambda: Scores(torch.tensor(1.0)), r"total of the shape \(\)"),
        (lambda: Scores([1.0, 2.0]), r"total \[1\.0, 2\.0\] for 2 completions"),
        (lambda: Scores(torch.ones(2), {"a": torch.ones(3)}), r"parts\['a'\] of the shape \(3,\)"),
        (lambda: Scores(torch.ones(2), {"a": [1.0, 2.0]}), r"parts\['a'\] \[1\.0, 2\.0\]"),
        (lambda: Scores(torch.ones(2), failed=torch.ones(3).bool()), r"failed of the shape \(3,\)"),
    ],
)
def test_other_than_one_number_for_each_is_refused(make: Callable[[], Scores], said: str) -> None:
    completions = make_completions(make_tokenizer(), ["one "], ["a", "bb"])
    with pytest.raises(ConfigurationError, match=rf"Given\.score gave {said}"):
        score_completions(Given(make), completions, 0)


def test_scores_and_parts_are_numbers_whatever_a_reward_has_counted_in() -> None:
    right = torch.tensor([True, False])
    learned = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    completions = make_completions(make_tokenizer(), ["one "], ["a", "bb"])
    given = Scores(2 * learned, {"right": right, "words": torch.tensor([1, 2])}, right.long())
    found = score_completions(Given(lambda: given), completions, 0)
    for each in (found.total, *found.parts.values()):
        assert each.dtype == torch.float32
        assert not each.requires_grad
    assert found.parts["right"].mean() == 0.5
    assert torch.equal(found.left_out, right)


@pytest.mark.parametrize(
    "around",
    [
        NormalizedReward,
        lambda inner: WeightedSum({"inner": inner}),
        lambda inner: MonitoredReward(CountVowels(), {"inner": inner}),
        lambda inner: ConstrainedReward(CountVowels(), inner),
    ],
)
def test_a_reward_within_others_is_held_to_the_same(around: Callable[[Reward], Reward]) -> None:
    completions = make_completions(make_tokenizer(), ["one "], ["a", "bb"])
    with pytest.raises(ConfigurationError, match=r"Given\.score returned a Tensor: return"):
        score_completions(around(Given(lambda: torch.ones(2))), completions, 0)
    with pytest.raises(ConfigurationError, match=r"Given\.score gave total of the shape \(1,\)"):
        score_completions(around(Given(lambda: Scores(torch.ones(1)))), completions, 0)
    found = score_completions(
        around(Given(lambda: Scores(torch.tensor([True, False])))), completions, 0
    )
    assert found.total.dtype == torch.float32


def test_completions_padded_on_the_left_are_refused() -> None:
    tokenizer = make_tokenizer()
    ids, mask = torch.tensor([[5, 6]]), torch.tensor([[True, True]])
    generation = Generation(ids, torch.tensor([[False, True]]), torch.tensor([True]))
    with pytest.raises(ConfigurationError, match="padding before or between their tokens"):
        read_completions(tokenizer, Prompts(ids, mask), generation, {})


def test_the_part_that_is_not_finite_is_named() -> None:
    completions = make_completions(make_tokenizer(), ["one "], ["a", "bb"])
    broken = Given(lambda: Scores(torch.tensor([1.0, torch.nan])))
    reward = WeightedSum({"words": CountVowels(), "judge": broken})
    with pytest.raises(DataError, match=r"gave nan \(of its parts 'judge' nan\) for 1 of 2.*'bb'"):
        score_completions(reward, completions, 0)
