"""The demo's numbers."""

import pytest
import torch

from lit_rlhf.demo.results import (
    curves,
    distinct_n,
    examples,
    judge,
    policy_summary,
    reward_summary,
)
from lit_rlhf.demo.stages import PolicyResult, RewardResult
from lit_rlhf.demo.world import World

HOTEL, FILM = "review of the old hotel :", "about the new film :"
GOOD, BAD, BEST = "the room was good .", "the room was bad .", "the plot was very superb ."


def sample(prompt: str, response: str, score: float, iteration: int = 0) -> dict[str, object]:
    return {"prompt": prompt, "response": response, "score": score, "iteration": iteration}


@pytest.fixture
def policy() -> PolicyResult:
    return PolicyResult(
        before=[sample(HOTEL, BAD, -1.0), sample(HOTEL, GOOD, 0.5), sample(FILM, GOOD, 0.1)],
        after=[sample(HOTEL, GOOD, 1.0), sample(HOTEL, GOOD, 1.0), sample(FILM, BEST, 2.0)],
        kl_after=3.0,
        metrics=[{"train/objective/kl": 0.0}, {"train/objective/kl": 2.0}],
        rollouts=[sample(HOTEL, BAD, -1.0), sample(HOTEL, GOOD, 0.0), sample(HOTEL, GOOD, 1.0, 1)],
    )


def test_policy_summary(policy: PolicyResult) -> None:
    world = World()
    summary = policy_summary(policy, world)
    before = sum(world.utility(row["prompt"], row["response"]) for row in policy.before) / 3
    after = sum(world.utility(row["prompt"], row["response"]) for row in policy.after) / 3
    best = (2 * world.best_utility(HOTEL) + world.best_utility(FILM)) / 3
    assert summary["gold_before"] == pytest.approx(before)
    assert summary["gold_after"] == pytest.approx(after)
    assert summary["gold_max"] == pytest.approx(best)
    assert summary["gap_closed"] == pytest.approx((after - before) / (best - before))
    assert summary["reward_before"] == pytest.approx(-0.4 / 3)
    assert summary["reward_after"] == pytest.approx(4 / 3)
    assert summary["kl"] == 3.0


def test_curves_are_means_of_iterations(policy: PolicyResult) -> None:
    world = World()
    lines = curves(policy, world)
    assert lines["proxy"] == [-0.5, 1.0]
    assert lines["kl"] == [0.0, 2.0]
    assert lines["gold"] == pytest.approx(
        [(world.utility(HOTEL, BAD) + world.utility(HOTEL, GOOD)) / 2, world.utility(HOTEL, GOOD)]
    )


def test_examples_show_each_prompt_once(policy: PolicyResult) -> None:
    world = World()
    rows = examples(judge(policy.before, world), judge(policy.after, world), 8)
    assert [(row["prompt"], row["before"], row["after"]) for row in rows] == [
        (HOTEL, BAD, GOOD),
        (FILM, GOOD, BEST),
    ]


def test_reward_summary_counts_choices_and_knows_the_best() -> None:
    pairs = [
        {"utility_margin": 1.0},
        {"utility_margin": 2.0},
        {"utility_margin": -1.0},
        {"utility_margin": 0.5},
    ]
    summary = reward_summary(RewardResult(pairs, torch.tensor([1.0, -0.1, 0.3, 0.0])))
    assert summary["accuracy"] == 0.5  # a tie is no hit
    assert summary["bayes_accuracy"] == 0.75
    assert summary["accuracy_ratio"] == pytest.approx(2 / 3)


def test_distinct_n() -> None:
    assert distinct_n(["a b c", "a b d"], 2) == 3 / 4
    assert distinct_n(["a a a a"], 2) == 1 / 3
    assert distinct_n(["a"], 2) == 0.0
