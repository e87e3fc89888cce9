"""Preferences from scores, and how far best-of-n goes."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_rlhf.functional import best_of_n_kl, preference_probability
from tests.tolerances import FP64


def test_preferences_of_both_sides_sum_to_one() -> None:
    margins = torch.tensor([-40.0, -1.0, 0.0, 0.5, 800.0], dtype=torch.float64)
    for temperature in (0.5, 2.0):
        first = preference_probability(margins, temperature)
        by_hand = [
            1 / (1 + math.exp(-m / temperature)) if m > -700 else 0.0 for m in margins.tolist()
        ]
        assert_close(first, torch.tensor(by_hand, dtype=torch.float64), **FP64)
        assert_close(
            first + preference_probability(-margins, temperature), torch.ones_like(first), **FP64
        )


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_best_of_n_has_at_most_this_kl_and_reaches_it_without_ties(n: int) -> None:
    found = []
    for completions in (5, 100_000):
        # With equal chances the k-th best of m is the best of n with probability F(k)^n - F(k-1)^n.
        cdf = torch.linspace(0, 1, completions + 1, dtype=torch.float64) ** n
        best = cdf.diff()
        found.append(float((best * (best * completions).log()).nansum()))
    assert found[0] < best_of_n_kl(n) or n == 1
    assert found[1] == pytest.approx(best_of_n_kl(n), abs=2e-4)
