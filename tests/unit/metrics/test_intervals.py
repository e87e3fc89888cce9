"""Intervals and tests against scipy, and against how often they hold."""

import math

import pytest
import scipy.stats
import torch

from lit_rlhf.metrics import bootstrap_mean, mcnemar_test, wilson_interval, wilson_mean
from tests.tolerances import FP64


@pytest.mark.parametrize("right", [0, 1, 17, 40])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_equals_scipy(right: int, level: float) -> None:
    wanted = scipy.stats.binomtest(right, 40).proportion_ci(level, method="wilson")
    found = wilson_interval(right / 40, 40, level)
    assert found.value == right / 40
    torch.testing.assert_close(found[1:], (wanted.low, wanted.high), **FP64)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 3), (1, 9), (12, 40), (700, 800)])
def test_mcnemar_equals_scipy(first: int, second: int) -> None:
    total = first + second
    wanted = scipy.stats.binomtest(first, total).pvalue if total else 1.0
    assert math.isclose(mcnemar_test(first, second), wanted, rel_tol=1e-9)


def test_bootstrap_has_the_ends_of_scipys() -> None:
    values = torch.randn(80).double().exp()
    found = bootstrap_mean(values, resamples=20_000)
    data = (values.numpy(),)
    wanted = scipy.stats.bootstrap(
        data, lambda x: x.mean(), vectorized=False, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    width = wanted.high - wanted.low
    assert found.value == pytest.approx(float(values.mean()))
    assert abs(found.low - wanted.low) < 0.05 * width
    assert abs(found.high - wanted.high) < 0.05 * width


def test_repeated_prompts_do_not_make_it_surer() -> None:
    """Each value ten times over, as ten pairs of one prompt, has the interval of the values alone."""
    values = torch.randn(50).double()
    alone = bootstrap_mean(values)
    clusters = torch.arange(50).repeat_interleave(10)
    together = bootstrap_mean(values.repeat_interleave(10), clusters)
    apart = bootstrap_mean(values.repeat_interleave(10))
    torch.testing.assert_close(tuple(together), tuple(alone), **FP64)
    assert apart.high - apart.low < 0.5 * (alone.high - alone.low)
    shares = (values > 0).double()
    assert wilson_mean(shares.repeat_interleave(10), clusters) == pytest.approx(wilson_mean(shares))


def test_intervals_hold_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(300, 60, generator=generator) < 0.8
    wilson = [wilson_mean(row.double()) for row in draws]
    boot = [bootstrap_mean(row.double(), resamples=400, seed=i) for i, row in enumerate(draws)]
    for found in (wilson, boot):
        assert 0.9 < sum(one.low <= 0.8 <= one.high for one in found) / 300 < 0.99


def test_nothing_gives_nan() -> None:
    nothing = torch.zeros(0)
    for found in (wilson_mean(nothing), bootstrap_mean(nothing)):
        assert all(math.isnan(end) for end in found)


@pytest.mark.parametrize("values", [[3.0], [1.0, 0.0, 1.0]])
def test_one_case_drawn_again_tells_nothing_of_others(values: list[float]) -> None:
    found = bootstrap_mean(torch.tensor(values), torch.zeros(len(values), dtype=torch.int64))
    assert found.value == pytest.approx(sum(values) / len(values))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
