"""What oracles say of pairs of scores."""

import math

import torch
from torch.testing import assert_close

from lit_rlhf.objectives import BernoulliLabels, HardLabels, PreferenceOracle, SoftLabels
from tests.reference.preference_stats import concrete
from tests.tolerances import FP64

MARGINS = torch.tensor([-40.0, -1.0, 0.0, 0.5, 800.0], dtype=torch.float64)
DRAWS = torch.linspace(0, 0.999, 5, dtype=torch.float64)


def test_there_are_three() -> None:
    assert concrete(PreferenceOracle) == {"SoftLabels", "BernoulliLabels", "HardLabels"}


def test_soft_labels_are_the_probabilities_of_bradley_terry() -> None:
    for temperature in (0.5, 2.0):
        by_hand = [1 / (1 + math.exp(-m / temperature)) for m in MARGINS.tolist()]
        got = SoftLabels(temperature)(MARGINS, DRAWS)
        assert_close(got, torch.tensor(by_hand, dtype=torch.float64), **FP64)


def test_hard_labels_are_signs() -> None:
    margins = torch.tensor([-1e-6, 0.0, 3.0])
    assert HardLabels()(margins, torch.rand(3)).tolist() == [0.0, 0.5, 1.0]


def test_a_rater_says_yes_with_the_probability() -> None:
    margins = torch.tensor([-800.0, 0.3, 0.3, 800.0], dtype=torch.float64)
    chance = 1 / (1 + math.exp(-0.3))
    draws = torch.tensor([0.0, chance - 1e-6, chance + 1e-6, 0.999], dtype=torch.float64)
    assert BernoulliLabels()(margins, draws).tolist() == [0.0, 1.0, 0.0, 1.0]
