"""The advantage classes: what they call, their state and what they refuse."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.functional.advantages import (
    discounted_returns,
    group_centered,
    group_normalized,
    leave_one_out,
    spread_over_tokens,
)
from lit_rlhf.objectives import (
    Advantage,
    GroupCentered,
    GroupNormalized,
    LeaveOneOut,
    MovingBaseline,
    RewardToGo,
    Whitened,
)
from tests.reference.batches import ragged, ragged_mask
from tests.tolerances import FP32, FP64

MASK = ragged_mask((1, 2, 7, 0))
REWARDS = ragged(MASK, garbage=0.0)
RETURNS = REWARDS.sum(-1)


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        (LeaveOneOut(), leave_one_out(RETURNS, 2)),
        (GroupCentered(), group_centered(RETURNS, 2)),
        (GroupNormalized(eps=0.5), group_normalized(RETURNS, 2, 0.5)),
        (MovingBaseline(), RETURNS - RETURNS.mean()),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Advantage) else "",
)
def test_sequence_advantages_are_spread_over_tokens(advantage: Advantage, expected: Tensor) -> None:
    assert_close(advantage(REWARDS, MASK, 2), spread_over_tokens(expected, MASK), **FP64)


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
    assert [a.min_samples for a in (LeaveOneOut(), GroupCentered(), GroupNormalized())] == [2, 2, 2]
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
