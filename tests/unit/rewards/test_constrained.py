"""A reward under a constraint: the combination, and where its multiplier goes."""

import math

import pytest
import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.rewards import ConstrainedReward, FunctionReward, NormalizedReward, Reward
from lit_rlhf.testing import make_tokenizer
from lit_rlhf.types import Completions
from lit_rlhf.verify import targets
from lit_rlhf.verify.tabular import TabularWorld, tree
from lit_rlhf.verify.variants import TabularReward
from tests.reference.completions import make_completions
from tests.tolerances import FP32

BETA = 0.5


def fixed(*values: float) -> FunctionReward:
    return FunctionReward(lambda **_: values)


def completions() -> Completions:
    return make_completions(make_tokenizer(), ["one "], ["a", "bb", "ccc"])


def test_the_cost_is_weighed_against_the_reward() -> None:
    reward = ConstrainedReward(fixed(1, 2, 3), fixed(-4, 0, 2), multiplier=3.0, rate=0.0)
    torch.testing.assert_close(
        reward.score(completions()).total, torch.tensor([13.0, 2.0, -3.0]) / 4
    )
    parts = reward.score(completions()).parts
    assert parts["reward"].tolist() == [1, 2, 3]
    assert parts["cost"].tolist() == [-4, 0, 2]
    assert parts["multiplier"].tolist() == [3, 3, 3]


def test_the_multiplier_climbs_where_the_cost_exceeds_its_limit() -> None:
    for limit, sign in ((0.5, 1), (1.5, -1), (1.0, 0)):
        reward = ConstrainedReward(
            fixed(0, 0, 0), fixed(0, 1, 2), limit=limit, multiplier=2.0, rate=0.1
        )
        found = reward.score(completions())
        assert math.log(reward.multiplier / 2.0) == pytest.approx(sign * 0.1 * 2.0 * 0.5)
        assert found.parts["multiplier"].tolist() == [
            2,
            2,
            2,
        ]  # the batch is scored with the old one
        reward.eval()
        before = float(reward.multiplier)
        reward.score(completions())
        assert reward.multiplier == before


def test_the_multiplier_keeps_to_its_bounds() -> None:
    for cost, bound in ((1e9, 5.0), (-1e9, 0.2)):
        reward = ConstrainedReward(
            fixed(0, 0, 0), fixed(cost, cost, cost), rate=1.0, max_multiplier=5.0
        )
        reward.score(completions())
        assert float(reward.multiplier) == pytest.approx(bound)


def test_the_multiplier_is_part_of_the_state() -> None:
    def make() -> ConstrainedReward:
        return ConstrainedReward(
            NormalizedReward(fixed(1, 2, 3)), NormalizedReward(fixed(0, 3, 4)), limit=-1.0
        )

    reward, other = make(), make()
    reward.score(completions())
    assert reward.multiplier != 1.0
    other.load_state_dict(reward.state_dict())
    assert other.multiplier == reward.multiplier
    torch.testing.assert_close(
        other.score(completions()).total, reward.score(completions()).total, **FP32
    )
    assert len(reward.members()) == 2


def _batch(world: TabularWorld, policy: Tensor, size: int = 400) -> Completions:
    """Completions as often as a policy has them."""
    counts = (policy * size).round().long().tolist()
    rows = [y for y, count in zip(world.completions, counts, strict=True) for _ in range(count)]
    mask = torch.tensor([[t < len(y) for t in range(world.depth)] for y in rows])
    tokens = torch.tensor([[*y, *[0] * (world.depth - len(y))] for y in rows])
    zeros, texts = torch.zeros(1, 1, dtype=torch.int64), [""] * len(rows)
    return Completions(
        zeros, zeros == 0, tokens, mask, torch.ones(len(rows), dtype=torch.bool), texts, texts
    )


@pytest.mark.parametrize(("limit", "binds"), [(0.15, True), (5.0, False)])
def test_dual_ascent_ends_in_complementary_slackness(limit: float, binds: bool) -> None:
    """The policy is the optimum at each multiplier: the constraint is met exactly, or the multiplier vanishes."""
    world = tree()
    costs = world.rewards.flip(0) ** 2
    reward = ConstrainedReward(
        TabularReward(world, world.rewards),
        TabularReward(world, costs),
        limit=limit,
        rate=1.0,
        max_multiplier=100.0,
    )
    for _ in range(50):
        weight = float(reward.multiplier)
        policy = targets.tilted(
            world.reference, (world.rewards - weight * costs) / ((1 + weight) * BETA)
        )
        reward.score(_batch(world, policy))
    if binds:
        assert float(policy @ costs) == pytest.approx(limit, abs=5e-3)  # counts are whole numbers
        assert 0.05 < reward.multiplier < 50
    else:
        assert float(reward.multiplier) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multiplier": 0.0}, r"multiplier must be from"),
        ({"multiplier": 30.0}, r"multiplier=30\.0"),
        ({"rate": -0.1}, r"rate=-0\.1.*would favour cost"),
        ({"max_multiplier": 0.5}, r"max_multiplier=0\.5"),
    ],
)
def test_bad_options_are_refused(options: dict[str, float], message: str) -> None:
    part: Reward = fixed(0)
    with pytest.raises(ConfigurationError, match=message):
        ConstrainedReward(part, part, **options)
