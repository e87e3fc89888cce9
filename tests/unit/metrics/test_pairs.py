"""What pairs tell, against slow references and brute force."""

import math

import pytest
import torch

from lit_rlhf.metrics import (
    best_of_credit,
    best_of_n_curve,
    best_temperature,
    brier_score,
    feature_bias,
    rater_ceiling,
)
from tests.reference import metrics as reference
from tests.tolerances import FP64


@pytest.mark.parametrize("ties", [False, True])
def test_best_of_n_equals_all_subsets(ties: bool) -> None:
    scores, values = torch.randn(6).double(), torch.randn(6).double()
    if ties:
        scores = scores.round()
        scores[3] = scores[1]
    wanted = [reference.best_of_n(scores.tolist(), values.tolist(), n) for n in range(1, 7)]
    found = best_of_n_curve(scores, values)
    torch.testing.assert_close(found.tolist(), wanted, **FP64)
    assert best_of_credit(scores, values > 0) == pytest.approx(
        reference.best_of_n(scores.tolist(), (values > 0).double().tolist(), 6)
    )


def test_brier_is_the_squared_error_over_single_votes() -> None:
    """A soft label of 3 in 4 is four votes, of which one is against."""
    margins, ups = torch.randn(30).double(), torch.randint(0, 5, (30,))
    votes = [v for up in ups.tolist() for v in [1] * up + [0] * (4 - up)]
    said = margins.sigmoid().repeat_interleave(4).tolist()
    found = brier_score(margins, ups / 4)
    errors = [(vote - p) ** 2 for vote, p in zip(votes, said, strict=True)]
    assert math.isclose(found, math.fsum(errors) / len(errors), rel_tol=1e-9)


@pytest.mark.parametrize("true", [1e-6, 0.25, 1.0, 3.0, 1e6])
def test_temperature_is_found_again(true: float) -> None:
    margins = torch.randn(4000).double() * 3 * true
    assert math.isclose(best_temperature(margins, (margins / true).sigmoid()), true, rel_tol=1e-6)


def test_temperature_beats_all_others() -> None:
    margins, p = torch.randn(200).double(), torch.rand(200).double()
    p = (p + (margins > 0)) / 2

    def loss(temperature: float) -> float:
        logits = margins / temperature
        return float(
            torch.nn.functional.binary_cross_entropy_with_logits(logits, p, reduction="mean")
        )

    best = best_temperature(margins, p)
    assert all(loss(best) <= loss(best * factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0))


@pytest.mark.parametrize("size", [1e-3, 1.0, 50.0, 1e6])
def test_where_no_temperature_fits_best_it_is_an_end(size: float) -> None:
    ones = torch.ones(4)
    assert best_temperature(size * ones, ones) == pytest.approx(1e-3 * size)
    assert best_temperature(-size * ones, ones) == pytest.approx(1e3 * size)
    assert best_temperature(0 * ones, ones) == pytest.approx(1e3)


def test_rater_agreement_counts_pairs_of_raters() -> None:
    votes = [[True] * 7 + [False] * 3, [True] * 2, [True, False], [True], [False] * 3 + [True]]
    p = torch.tensor([sum(v) / len(v) for v in votes])
    found = rater_ceiling(p, torch.tensor([len(v) for v in votes]))
    assert found.raters == pytest.approx(reference.rater_agreement(votes))
    assert found.best == pytest.approx((0.7 + 1 + 0.5 + 1 + 0.75) / 5)
    many = rater_ceiling(torch.tensor([0.7]), torch.tensor([10_000_000]))
    assert many.raters == pytest.approx(rater_ceiling(torch.tensor([0.7])).raters, abs=1e-6)


def test_a_model_that_goes_by_length_is_found_out() -> None:
    generator = torch.Generator().manual_seed(1)
    longer = torch.randn(2000, generator=generator).round()
    fair, by_length = torch.randn(2000, generator=generator) + 1, longer + 0.1
    p = torch.ones(2000)
    honest, biased = (feature_bias(margins, p, longer) for margins in (fair, by_length))
    assert honest and biased
    assert honest.pairs == int((longer != 0).sum())
    assert honest.excess.low < 0 < honest.excess.high
    assert biased.excess.low > 0.4
    assert biased.right_with.value == 1.0
    assert biased.right_against.value == 0.0
    assert abs(honest.right_with.value - honest.right_against.value) < 0.06
    assert feature_bias(fair, p, torch.zeros(2000)) is None
