"""KL control: the update rule, its limits, state."""

import math

import pytest

from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.objectives import AdaptiveKL, FixedKL


def _slow(value: float, kl: float, target: float, n: int, horizon: int) -> float:
    error = kl / target - 1
    error = min(error, 0.2)
    error = max(error, -0.2)
    return value * (1 + error * n / horizon)


@pytest.mark.parametrize("kl", [-3.0, 0.0, 5.0, 5.9, 6.0, 6.6, 7.3, 100.0])
def test_the_coefficient_follows_the_rule(kl: float) -> None:
    control = AdaptiveKL(init=0.2, target=6.0, horizon=1000)
    expected = 0.2
    for n in (64, 128):
        control.update(kl, n)
        expected = _slow(expected, kl, 6.0, n, 1000)
    assert math.isclose(control.value, expected, rel_tol=1e-12)


def test_one_iteration_changes_it_by_a_fifth_at_most() -> None:
    up, down = AdaptiveKL(0.1, 6.0, 10), AdaptiveKL(0.1, 6.0, 10)
    up.update(1e9, 10_000)
    down.update(0.0, 10_000)
    assert math.isclose(up.value, 0.12)
    assert math.isclose(down.value, 0.08)


@pytest.mark.parametrize("kl", [float("nan"), float("inf")])
def test_a_divergence_that_is_not_finite_changes_nothing(kl: float) -> None:
    control = AdaptiveKL()
    control.update(kl, 64)
    assert control.value == 0.1


def test_it_settles_where_the_policy_meets_the_target() -> None:
    """A policy whose KL is 1 / beta meets 5 nats at beta = 0.2."""
    control = AdaptiveKL(init=1.0, target=5.0, horizon=500)
    for _ in range(400):
        control.update(1 / control.value, 64)
    assert math.isclose(control.value, 0.2, rel_tol=1e-3)


def test_a_fixed_coefficient_stays() -> None:
    control = FixedKL(1)
    control.update(1e9, 64)
    assert control.value == 1.0
    assert isinstance(control.value, float)
    assert control.state_dict() == {}
    control.load_state_dict({})


def test_the_coefficient_survives_a_resume() -> None:
    whole = AdaptiveKL()
    whole.update(20.0, 640)
    resumed = AdaptiveKL()
    resumed.load_state_dict(whole.state_dict())
    assert resumed.value == whole.value != 0.1


def test_states_of_the_other_controller_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"holds no KL coefficient \(found: \[\]\)"):
        AdaptiveKL().load_state_dict({})
    with pytest.raises(CheckpointError, match=r"\{'value': 0.3\}.*FixedKL has no state"):
        FixedKL().load_state_dict({"value": 0.3})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedKL(-0.1), r"FixedKL\(coef=-0.1\): coef must be 0 or more"),
        (lambda: FixedKL(float("nan")), r"coef=nan"),
        (
            lambda: AdaptiveKL(init=0.0),
            r"AdaptiveKL\(init=0.0\): init must be above 0; for no penalty use FixedKL\(0\)",
        ),
        (
            lambda: AdaptiveKL(target=0.0),
            r"AdaptiveKL\(target=0.0\): target must be above 0, in nats",
        ),
        (
            lambda: AdaptiveKL(horizon=0),
            r"AdaptiveKL\(horizon=0\): horizon must be above 0, in sequences",
        ),
    ],
)
def test_options_out_of_range_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigurationError, match=message):
        make()
