"""Metrics against slow references, scipy and torchmetrics; ties, soft labels, masks, ranks and bad conditioning."""

from collections.abc import Callable

import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.testing import assert_close
from torchmetrics import Metric
from torchmetrics.classification import BinaryCalibrationError

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.metrics import (
    CalibrationError,
    ExplainedVariance,
    LengthCorrelation,
    MeanAndStd,
    PreferenceAccuracy,
    RewardMargin,
)
from tests.reference import metrics as reference
from tests.tolerances import BF16, FP32


def _pairs(n: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    chosen, rejected = torch.randn(n), torch.randn(n)
    rejected[:7] = chosen[:7]  # ties
    return chosen, rejected, torch.rand(n)


def _tokens() -> tuple[Tensor, Tensor, Tensor]:
    returns = torch.randn(12, 9)
    return returns + 0.5 * torch.randn(12, 9), returns, torch.rand(12, 9) < 0.7


def _answers() -> tuple[Tensor, Tensor]:
    lengths = torch.randint(1, 50, (120,))
    return 0.1 * lengths + torch.randn(120), lengths


CASES: dict[str, tuple[Callable[[], Metric], Callable[[], tuple[Tensor, ...]]]] = {
    "accuracy": (PreferenceAccuracy, _pairs),
    "margin": (RewardMargin, lambda: _pairs()[:2]),
    "calibration": (CalibrationError, _pairs),
    "mean and std": (MeanAndStd, lambda: (1000 + torch.randn(60),)),
    "explained variance": (ExplainedVariance, _tokens),
    "length correlation": (LengthCorrelation, _answers),
}
each_metric = pytest.mark.parametrize("name", CASES)


def _value(metric: Metric, *data: Tensor, parts: int = 1) -> Tensor:
    for chunk in zip(*(tensor.chunk(parts) for tensor in data), strict=True):
        metric.update(*chunk)
    result: Tensor = metric.compute()
    return result


@each_metric
def test_batches_do_not_matter(name: str) -> None:
    make, draw = CASES[name]
    data = draw()
    assert_close(_value(make(), *data, parts=5), _value(make(), *data), **FP32)


@each_metric
def test_forward_gives_the_batch_and_accumulates(name: str) -> None:
    make, draw = CASES[name]
    data = draw()
    metric = make()
    for chunk in zip(*(tensor.chunk(3) for tensor in data), strict=True):
        assert_close(metric(*chunk), _value(make(), *chunk), **FP32)
    assert_close(metric.compute(), _value(make(), *data), **FP32)


@each_metric
def test_order_does_not_matter(name: str) -> None:
    make, draw = CASES[name]
    data = draw()
    order = torch.randperm(len(data[0]))
    assert_close(_value(make(), *(tensor[order] for tensor in data)), _value(make(), *data), **FP32)


@each_metric
def test_reset_forgets(name: str) -> None:
    make, draw = CASES[name]
    metric = make()
    _value(metric, *draw())
    metric.reset()
    data = draw()
    assert_close(_value(metric, *data), _value(make(), *data), **FP32)


@each_metric
def test_half_precision_inputs(name: str) -> None:
    make, draw = CASES[name]
    data = draw()
    half = [tensor.bfloat16() if tensor.is_floating_point() else tensor for tensor in data]
    full = [tensor.float() if tensor.is_floating_point() else tensor for tensor in half]
    assert_close(_value(make(), *half), _value(make(), *full), **FP32)


# The others select by a mask, so that a shape depends on data.
@pytest.mark.parametrize("name", ["accuracy", "margin", "calibration", "mean and std"])
def test_no_state_is_left_on_another_device(name: str) -> None:
    make, draw = CASES[name]
    metric = make().to("meta")
    metric.update(*(tensor.to("meta") for tensor in draw()))


@each_metric
def test_two_ranks_equal_one(name: str) -> None:
    """The states of two ranks with unequal shares, joined as torchmetrics joins them."""
    make, draw = CASES[name]
    data = draw()
    first, second = make(), make()
    first.update(*(tensor[:5] for tensor in data))
    second.update(*(tensor[5:] for tensor in data))
    others = iter([getattr(second, state) for state in second._reductions])
    first.dist_sync_fn = lambda tensor, group=None: [tensor, next(others)]
    first.distributed_available_fn = lambda: True
    assert_close(first.compute(), _value(make(), *data), **FP32)


def test_accuracy_and_margin_match_the_reference() -> None:
    chosen, rejected, p = _pairs()
    lists = chosen.tolist(), rejected.tolist(), p.tolist()
    assert_close(
        _value(PreferenceAccuracy(), chosen, rejected, p).item(),
        reference.preference_accuracy(*lists),
        **FP32,
    )
    expected = sum(a - b for a, b in zip(lists[0], lists[1], strict=True)) / len(p)
    assert_close(_value(RewardMargin(), chosen, rejected).item(), expected, **FP32)


def test_ties_count_zero() -> None:
    scores = torch.ones(4)
    assert _value(PreferenceAccuracy(), scores, scores) == 0
    assert _value(PreferenceAccuracy(), scores, scores, torch.full((4,), 0.5)) == 0


def test_hard_labels_are_soft_labels_of_one() -> None:
    chosen, rejected, _ = _pairs()
    ones = torch.ones_like(chosen)
    for make in (PreferenceAccuracy, CalibrationError):
        assert_close(
            _value(make(), chosen, rejected), _value(make(), chosen, rejected, ones), **FP32
        )


def test_pairs_can_be_written_the_other_way_round() -> None:
    chosen, rejected, p = _pairs()
    for make in (PreferenceAccuracy, CalibrationError):
        assert_close(
            _value(make(), rejected, chosen, 1 - p), _value(make(), chosen, rejected, p), **FP32
        )


@pytest.mark.parametrize("num_bins", [1, 5, 10])
def test_calibration_matches_the_reference(num_bins: int) -> None:
    chosen, rejected, _ = _pairs(400)
    p = 0.5 + 0.5 * torch.sin(
        6 * (chosen - rejected)
    )  # too sure in some bins, not sure enough in others
    expected = reference.calibration_error(chosen.tolist(), rejected.tolist(), p.tolist(), num_bins)
    assert_close(_value(CalibrationError(num_bins), chosen, rejected, p).item(), expected, **FP32)


def test_calibration_of_hard_labels_matches_torchmetrics() -> None:
    chosen, rejected = torch.randn(300), torch.randn(300)
    margin = chosen - rejected
    theirs = BinaryCalibrationError(n_bins=20)
    theirs.update(margin.abs().sigmoid(), (margin > 0).long())
    assert_close(_value(CalibrationError(10), chosen, rejected), theirs.compute(), **FP32)


def test_a_calibrated_model_has_no_calibration_error() -> None:
    margin = 3 * torch.randn(500)
    zeros = torch.zeros_like(margin)
    assert_close(
        _value(CalibrationError(), margin, zeros, margin.sigmoid()), torch.tensor(0.0), **FP32
    )
    # Twice too sure:
    assert _value(CalibrationError(), 2 * margin, zeros, margin.sigmoid()) > 0.05


def test_certain_scores_fall_into_the_last_bin() -> None:
    assert_close(
        _value(CalibrationError(), torch.full((3,), 1e4), torch.zeros(3)), torch.tensor(0.0), **FP32
    )


def test_calibration_refuses_no_bins() -> None:
    with pytest.raises(
        ConfigurationError, match=r"CalibrationError\(num_bins=0\): num_bins must be 1 or more"
    ):
        CalibrationError(0)


def test_explained_variance_matches_the_reference() -> None:
    values, returns, mask = _tokens()
    expected = reference.explained_variance(values.tolist(), returns.tolist(), mask.int().tolist())
    assert_close(_value(ExplainedVariance(), values, returns, mask).item(), expected, **FP32)


def test_explained_variance_ignores_what_is_masked() -> None:
    values, returns, mask = _tokens()
    garbage = torch.where(mask, values, torch.nan), torch.where(mask, returns, 1e9)
    assert_close(
        _value(ExplainedVariance(), *garbage, mask),
        _value(ExplainedVariance(), values, returns, mask),
        **FP32,
    )


def test_explained_variance_of_returns_far_from_zero() -> None:
    returns = 1000 + torch.randint(0, 2, (40, 50)).float()
    values = returns + 0.25 * torch.randint(-1, 2, (40, 50))
    expected = reference.explained_variance(
        values.tolist(), returns.tolist(), torch.ones(40, 50).tolist()
    )
    assert_close(_value(ExplainedVariance(), values, returns, parts=8).item(), expected, **FP32)


def test_explained_variance_of_known_cases() -> None:
    returns = torch.randn(4, 5)
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    assert_close(_value(ExplainedVariance(), returns, returns), one, **FP32)
    assert_close(_value(ExplainedVariance(), returns + 3, returns), one, **FP32)  # a constant error
    assert_close(_value(ExplainedVariance(), torch.zeros_like(returns), returns), zero, **FP32)
    assert _value(ExplainedVariance(), -returns, returns) < 0
    assert _value(ExplainedVariance(), returns, torch.ones_like(returns)).isnan()


def test_explained_variance_of_a_batch_with_nothing_that_counts() -> None:
    values, returns, mask = _tokens()
    metric = ExplainedVariance()
    metric.update(values, returns, torch.zeros_like(mask))
    assert metric.compute().isnan()
    assert_close(
        _value(metric, values, returns, mask),
        _value(ExplainedVariance(), values, returns, mask),
        **FP32,
    )


def test_mean_and_std_match_float64() -> None:
    numbers = 1000 + torch.randn(7, 30)
    exact = numbers.double()
    expected = torch.stack([exact.mean(), exact.std(correction=0)]).float()
    assert_close(_value(MeanAndStd(), numbers, parts=7), expected, **FP32)
    assert MeanAndStd()(torch.empty(0)).isnan().all()


def test_length_correlation_matches_scipy() -> None:
    scores, lengths = _answers()
    expected = scipy.stats.pearsonr(scores.numpy(), lengths.numpy()).statistic
    assert_close(_value(LengthCorrelation(), scores, lengths).item(), float(expected), **FP32)
    assert_close(_value(LengthCorrelation(), -scores, lengths).item(), -float(expected), **FP32)


def test_length_correlation_skips_branches_that_do_not_exist() -> None:
    scores, lengths = _answers()
    table, mask = torch.full((120, 2), 7.0), torch.tensor([True, False]).expand(120, 2)
    table[:, 0] = scores
    wide = torch.stack([lengths, torch.arange(120)], dim=-1)
    assert_close(
        _value(LengthCorrelation(), table, wide, mask),
        _value(LengthCorrelation(), scores, lengths),
        **FP32,
    )


def test_length_correlation_of_equal_scores_is_undefined_without_a_warning() -> None:
    assert _value(LengthCorrelation(), torch.ones(5), torch.arange(5)).isnan()


def test_scores_in_half_precision_are_compared_in_single() -> None:
    chosen = torch.randn(100).bfloat16()
    rejected = torch.randn(100).bfloat16()
    assert_close(
        _value(RewardMargin(), chosen, rejected), (chosen.float() - rejected.float()).mean(), **FP32
    )
    assert_close(
        _value(RewardMargin(), chosen, rejected), (chosen - rejected).float().mean(), **BF16
    )


def test_bins_make_up_the_calibration_error() -> None:
    chosen, rejected, p = _pairs(500)
    metric = CalibrationError()
    error = _value(metric, chosen, rejected, p)
    bins = metric.bins()
    assert sum(count for _, _, count in bins) == 500
    total = sum(count * abs(holds - sure) for sure, holds, count in bins)
    assert_close(total / 500, float(error), **FP32)
