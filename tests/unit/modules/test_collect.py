"""Scores of rewards of one's own, held to their shape before anything reads them."""

from collections.abc import Callable

import pytest
import torch

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.modules.collect import score_completions
from lit_rlhf.rewards import Reward
from lit_rlhf.testing import make_tokenizer
from lit_rlhf.types import Completions, Scores
from tests.reference.completions import make_completions


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
