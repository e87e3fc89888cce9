"""Completions that couldn't be scored: left out, as if they had never been drawn."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_rlhf.errors import ServiceError
from lit_rlhf.functional.advantages import equal_groups
from lit_rlhf.functional.policy_losses import relative_reward_loss
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import (
    BestOfNPolicyModule,
    DAPOPolicyModule,
    GRPOPolicyModule,
    NashMDPolicyModule,
    OnlineDPOPolicyModule,
    PolicyModule,
    PPOPolicyModule,
    REBELPolicyModule,
    REINFORCEPolicyModule,
    ReinforcePPPolicyModule,
    ReMaxPolicyModule,
    RLOOPolicyModule,
    Updates,
)
from lit_rlhf.objectives import (
    Advantage,
    BatchNormalized,
    GroupCentered,
    GroupNormalized,
    LeaveOneOut,
    MovingBaseline,
    RewardToGo,
    Whitened,
    places_among,
)
from lit_rlhf.rewards import (
    ConstrainedReward,
    EnsembleMean,
    MonitoredReward,
    NormalizedReward,
    Reward,
    WeightedSum,
)
from lit_rlhf.rollout import Sampling
from lit_rlhf.testing import make_tokenizer
from lit_rlhf.types import Completions, Scores
from tests.reference.completions import make_completions
from tests.tolerances import FP32
from tests.unit.modules.policies import CountVowels, fit
from tests.walks import walk

ADVANTAGES: dict[str, Callable[[], Advantage]] = {
    "leave-one-out": LeaveOneOut,
    "centered": GroupCentered,
    "normalized": GroupNormalized,
    "batch": BatchNormalized,
    "moving": MovingBaseline,
    "to-go": RewardToGo,
    "whitened": lambda: Whitened(GroupCentered()),
}


class Failing(CountVowels):
    """Scores no response whose sum of code points is divisible by `every`; `filler` stands in their place."""

    def __init__(self, filler: float = 0.0, every: int = 3) -> None:
        super().__init__()
        self.filler, self.every = filler, every
        self.counts: list[int] = []

    def score(self, completions: Completions) -> Scores:
        total = super().score(completions).total
        failed = torch.tensor(
            [sum(map(ord, text)) % self.every == 0 for text in completions.responses]
        )
        self.counts.append(int(failed.sum()))
        return Scores(total.masked_fill(failed, self.filler), failed=failed)


def _one_missing(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Two groups of four, the third sample of each without tokens; and which rows are there."""
    rewards = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(8, 5, dtype=torch.bool)
    mask[::2, 3:] = False
    there = torch.arange(8) % 4 != 2
    mask[~there] = False
    return torch.where(mask, rewards, 0.0), mask, there


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_group_with_one_missing_is_the_smaller_group(name: str) -> None:
    rewards, mask, there = _one_missing()
    found = ADVANTAGES[name]()(rewards, mask, 4)
    wanted = ADVANTAGES[name]()(rewards[there], mask[there], 3)
    torch.testing.assert_close(found[there], wanted, **FP32)
    assert bool((found[~there] == 0).all())


def test_the_moving_baseline_does_not_count_the_missing() -> None:
    rewards, mask, there = _one_missing()
    one, other = MovingBaseline(), MovingBaseline()
    one(rewards, mask, 4)
    other(rewards[there], mask[there], 3)
    assert one.baseline == pytest.approx(other.baseline)


def test_anchors_without_score_are_fewer_anchors() -> None:
    scores = torch.tensor([[0.0, 2.0]])
    found = places_among(scores, torch.tensor([[0.0, math.nan, 1.0, 3.0]]))
    wanted = places_among(scores, torch.tensor([[0.0, 1.0, 3.0]]))
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def test_relative_rewards_and_equal_groups_of_fewer() -> None:
    rewards, mask, there = _one_missing()
    logprobs, old, _ = (_one_missing(seed)[0] for seed in (1, 2, 3))
    found = relative_reward_loss(logprobs, old, rewards, mask, 4)
    wanted = relative_reward_loss(logprobs[there], old[there], rewards[there], mask[there], 3)
    torch.testing.assert_close(found[there], wanted, **FP32)
    assert bool((found[~there] == 0).all())
    scores = torch.tensor([1.0, 1.0, 9.0, 1.0, 1.0, 2.0, 9.0, 1.0])
    assert equal_groups(scores, 4, there).tolist() == [True, False]
    assert equal_groups(scores, 4, torch.zeros(8, dtype=torch.bool)).tolist() == [True, True]


ONE: dict[str, Any] = {"num_samples": 3, "updates": Updates(epochs=1, minibatches=1)}
MODULES: dict[str, tuple[type[PolicyModule], dict[str, Any]]] = {
    "ppo": (PPOPolicyModule, {"num_samples": 3}),
    "grpo": (GRPOPolicyModule, {"num_samples": 4}),
    "rloo": (RLOOPolicyModule, {}),
    "reinforce": (REINFORCEPolicyModule, {"advantage": MovingBaseline, **ONE}),
    "reinforce++": (ReinforcePPPolicyModule, {"num_samples": 3}),
    "dapo": (DAPOPolicyModule, {"num_samples": 4, "oversampling": 2}),
    "rebel": (REBELPolicyModule, {"num_samples": 3}),
    "online-dpo": (OnlineDPOPolicyModule, {"num_samples": 4}),
    "nash-md": (NashMDPolicyModule, ONE),
    "best-of-n": (BestOfNPolicyModule, {"n": 2, "num_anchors": 3}),
    "remax": (ReMaxPolicyModule, ONE),
}


def train(name: str, model: Path, reward: Reward) -> tuple[dict[str, Tensor], dict[str, Any]]:
    kind, options = MODULES[name]
    options = {key: value() if value is MovingBaseline else value for key, value in options.items()}
    module = kind(
        ModelSpec(name=str(model), lora=LoraSpec(rank=4)),
        reward,
        sampling=Sampling(max_new_tokens=6),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3),
        **{"updates": Updates(epochs=2, minibatches=2), **options},
    )
    trainer = fit(module, model)
    weights = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
    return weights, dict(trainer.callback_metrics)


@pytest.mark.parametrize("name", walk(MODULES, "ppo", "online-dpo"))
def test_what_stands_in_place_of_a_missing_score_changes_nothing(
    name: str, tiny_model_dir: Path
) -> None:
    failing = Failing(0.0)
    weights, logged = train(name, tiny_model_dir, failing)
    assert sum(failing.counts) > 0
    if name in ("ppo", "grpo", "rloo", "reinforce", "reinforce++", "rebel"):  # one call a batch
        assert int(logged["train/reward/failed"]) == failing.counts[-1]
    others, again = train(name, tiny_model_dir, Failing(50.0))
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    for key in ("train/objective/scores", "train/objective/scores_std", "train/objective/kl"):
        assert float(logged[key]) == float(again[key])
    whole, counted = train(name, tiny_model_dir, CountVowels())
    assert float(counted["train/reward/failed"]) == 0
    assert any(not torch.equal(weights[key], whole[key]) for key in weights)


def test_a_batch_without_any_score_ends_the_run(tiny_model_dir: Path) -> None:
    with pytest.raises(ServiceError, match="scored none of 12 completions"):
        train("ppo", tiny_model_dir, Failing(every=1))


def test_rewards_of_rewards_pass_it_on() -> None:
    texts = ["aaa", "eeeee", "ao", "iii"]
    completions = make_completions(make_tokenizer(), ["one ", "two "], texts)
    wanted = [True, False, False, True]
    rewards: dict[str, Reward] = {
        "sum": WeightedSum({"a": Failing(), "b": CountVowels()}),
        "ensemble": EnsembleMean([CountVowels(), Failing()]),
        "constrained": ConstrainedReward(CountVowels(), Failing(), limit=3.5),
        "normalized": NormalizedReward(Failing(900.0)),
        "monitored": MonitoredReward(Failing(), {"gold": CountVowels()}),
    }
    for name, reward in rewards.items():
        assert reward.score(completions).left_out.tolist() == wanted, name
    watched = MonitoredReward(CountVowels(), {"gold": Failing()})
    assert not watched.score(completions).left_out.any()
    normalized, constrained = rewards["normalized"], rewards["constrained"]
    assert isinstance(normalized, NormalizedReward) and isinstance(constrained, ConstrainedReward)
    assert normalized.moments()[0] == pytest.approx(3.5)  # of 5 and 2, see texts
    assert float(constrained.multiplier) == pytest.approx(1.0)  # their mean cost is the limit
    assert math.isfinite(float(constrained.multiplier))
