"""The advantage classes: what they call, their state and what they refuse."""

import copy

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.functional.advantages import discounted_returns
from lit_rlhf.objectives import (
    Advantage,
    BatchNormalized,
    GroupCentered,
    GroupNormalized,
    LeaveOneOut,
    MovingBaseline,
    RewardToGo,
    Whitened,
)
from tests.reference import advantages as reference
from tests.reference.batches import ragged, ragged_mask
from tests.tolerances import FP32, FP64

MASK = ragged_mask((1, 2, 7, 3))  # rows without tokens: test_failed_scores
REWARDS = ragged(MASK, garbage=0.0)
RETURNS = REWARDS.sum(-1)


OF_GROUPS = [LeaveOneOut(), GroupCentered(), GroupNormalized(), BatchNormalized()]


def _scores(advantage: Advantage, returns: Tensor, num_samples: int) -> Tensor:
    """Advantages (N,) of sequences of one token."""
    mask = torch.ones(len(returns), 1, dtype=torch.bool)
    return advantage(returns[:, None], mask, num_samples).squeeze(-1)


@pytest.mark.parametrize("num_samples", [2, 3, 6])
def test_group_advantages_match_loops(num_samples: int) -> None:
    returns = torch.randn(12, dtype=torch.float64)
    lists = returns.tolist()
    loo = torch.tensor(reference.leave_one_out(lists, num_samples), dtype=torch.float64)
    assert_close(_scores(LeaveOneOut(), returns, num_samples), loo, **FP64)
    centered = loo * (num_samples - 1) / num_samples
    assert_close(_scores(GroupCentered(), returns, num_samples), centered, **FP64)
    for eps in (1e-4, 1e-2):
        whole = torch.tensor(
            reference.batch_normalized(lists, num_samples, eps), dtype=torch.float64
        )
        assert_close(_scores(BatchNormalized(eps), returns, num_samples), whole, **FP64)
        expected = reference.group_normalized(lists, num_samples, eps)
        advantage = GroupNormalized() if eps == 1e-4 else GroupNormalized(eps)
        got = _scores(advantage, returns, num_samples)
        assert_close(got, torch.tensor(expected, dtype=torch.float64), **FP64)


@pytest.mark.parametrize("advantage", OF_GROUPS[:3], ids=lambda a: type(a).__name__)
def test_group_advantages_do_not_see_a_shift_of_a_prompt(advantage: Advantage) -> None:
    returns = torch.randn(12, dtype=torch.float64)
    shift = torch.randn(3, dtype=torch.float64).repeat_interleave(4)
    got = _scores(advantage, returns, 4)
    assert_close(_scores(advantage, returns + shift, 4), got, **FP64)
    assert_close(got.view(3, 4).sum(-1), torch.zeros(3, dtype=torch.float64), **FP64)


def test_normalized_advantages_do_not_see_the_scale_either() -> None:
    returns = torch.randn(12, dtype=torch.float64)
    for normalized in (GroupNormalized(1e-14), BatchNormalized(1e-14)):
        assert_close(_scores(normalized, 7 * returns, 4), _scores(normalized, returns, 4), **FP64)
    loo = LeaveOneOut()
    assert_close(_scores(loo, 7 * returns, 4), 7 * _scores(loo, returns, 4), **FP64)


@pytest.mark.parametrize("advantage", OF_GROUPS, ids=lambda a: type(a).__name__)
def test_equal_returns_teach_nothing(advantage: Advantage) -> None:
    got = _scores(advantage, torch.full((6,), 0.1), 3)
    assert_close(got, torch.zeros(6), rtol=0.0, atol=1e-3)


@pytest.mark.parametrize(
    "advantage", [*OF_GROUPS, MovingBaseline()], ids=lambda a: type(a).__name__
)
def test_sequence_advantages_are_spread_over_tokens(advantage: Advantage) -> None:
    expected = _scores(copy.deepcopy(advantage), RETURNS, 2)
    got = advantage(REWARDS, MASK, 2)
    assert_close(got, torch.where(MASK, expected[:, None], 0.0), **FP64)


def test_reward_to_go_discounts() -> None:
    assert_close(
        RewardToGo(gamma=0.5)(REWARDS, MASK, 1), discounted_returns(REWARDS, MASK, 0.5), **FP64
    )


@pytest.mark.parametrize("center", [True, False])
def test_whitening_is_over_the_tokens_of_all_sequences(center: bool) -> None:
    plain = GroupCentered()(REWARDS, MASK, 2)
    white = Whitened(GroupCentered(), center=center)(REWARDS, MASK, 2)[MASK]
    assert_close(white.std(), torch.ones((), dtype=torch.float64), rtol=1e-6, atol=0.0)
    mean = torch.zeros((), dtype=torch.float64) if center else plain[MASK].mean()
    assert_close(white.mean(), mean, rtol=1e-6, atol=1e-9)


def test_how_many_samples_each_takes() -> None:
    assert [a.min_samples for a in OF_GROUPS] == [2] * 4
    assert [a.min_samples for a in (RewardToGo(), MovingBaseline(), Whitened(RewardToGo()))] == [
        1,
        1,
        1,
    ]
    assert Whitened(LeaveOneOut()).min_samples == 2


def test_the_moving_baseline_is_that_of_earlier_rollouts() -> None:
    advantage = MovingBaseline(decay=0.75)
    mask = torch.ones(2, 1, dtype=torch.bool)
    first = advantage(torch.tensor([[1.0], [3.0]]), mask, 1)
    assert first.flatten().tolist() == [-1.0, 1.0]
    second = advantage(torch.tensor([[6.0], [6.0]]), mask, 1)
    assert second.flatten().tolist() == [4.0, 4.0]
    assert advantage.state_dict() == {"baseline": 3.0}


@pytest.mark.parametrize("wrap", [lambda a: a, Whitened], ids=["plain", "whitened"])
def test_the_baseline_survives_a_resume(wrap: type[Whitened]) -> None:
    mask = torch.ones(3, 1, dtype=torch.bool)
    rollouts = [torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([[6.0], [5.0], [1.0]])]
    whole = wrap(MovingBaseline())
    whole(rollouts[0], mask, 1)
    resumed = wrap(MovingBaseline())
    resumed.load_state_dict(whole.state_dict())
    assert resumed.state_dict() == whole.state_dict() != {}
    assert torch.equal(resumed(rollouts[1], mask, 1), whole(rollouts[1], mask, 1))
    assert wrap(MovingBaseline()).state_dict() == {}


def test_a_rollout_that_is_not_finite_leaves_the_baseline() -> None:
    advantage = MovingBaseline(decay=0.5)
    mask = torch.ones(1, 1, dtype=torch.bool)
    advantage(torch.tensor([[2.0]]), mask, 1)
    advantage(torch.tensor([[float("inf")]]), mask, 1)
    assert_close(torch.tensor(advantage.state_dict()["baseline"]), torch.tensor(2.0), **FP32)


def test_stateless_advantages_refuse_a_state() -> None:
    LeaveOneOut().load_state_dict({})
    with pytest.raises(CheckpointError, match=r"\['baseline'\].*LeaveOneOut has none"):
        LeaveOneOut().load_state_dict({"baseline": 1.0})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GroupNormalized(eps=0.0), r"GroupNormalized\(eps=0.0\): eps must be above 0"),
        (lambda: BatchNormalized(eps=0.0), r"BatchNormalized\(eps=0.0\): eps must be above 0"),
        (lambda: RewardToGo(gamma=1.5), r"RewardToGo\(gamma=1.5\): gamma must be in \[0, 1\]"),
        (lambda: RewardToGo(gamma=float("nan")), r"gamma=nan"),
        (
            lambda: MovingBaseline(decay=1.0),
            r"MovingBaseline\(decay=1.0\): decay must be in \[0, 1\)",
        ),
        (lambda: LeaveOneOut()(REWARDS, MASK, 1), r"num_samples=1"),
    ],
)
def test_options_out_of_range_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigurationError, match=message):
        make()
