"""What must hold of every policy module: shifts of the reward, and iterations from which there is little to learn."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_rlhf import modules, objectives as o
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.modules import PolicyModule, Updates
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import NativeEngine, RolloutRequest
from lit_rlhf.types import Completions, Generation, Scores
from tests.invariants.test_knobs import POLICIES, SAMPLING
from tests.unit.modules.one_iteration import (
    TokenReward,
    build,
    full_batch,
    iterate,
    make_policy,
    parameters_of,
    template_of,
)

SEES_A_SHIFT = {"REINFORCEPolicyModule", "PPOPolicyModule", "PPOPtxPolicyModule"}
"""No baseline, or one that is still to be learned."""
NO_BASELINE = SEES_A_SHIFT | {
    "SPPOPolicyModule",
    "XPOPolicyModule",
    "NashMDPolicyModule",
    "OnlineDPOPolicyModule",
    "DistillationPolicyModule",
}
"""Those that take a step where all rewards are equal: an even preference, the reward itself or a teacher is news."""


class Shifted(TokenReward):
    """The reward plus a constant."""

    def score(self, completions: Completions) -> Scores:
        return Scores(super().score(completions).total + 3.0)


class Constant(Reward):
    """The same for all."""

    def score(self, completions: Completions) -> Scores:
        return Scores(torch.full((len(completions.tokens),), 0.5))


class MuteEngine(NativeEngine):
    """Some completions, and all of the first prompt, have no token at all."""

    def generate(self, backbone: Backbone, request: RolloutRequest) -> Generation:
        generation = super().generate(backbone, request)
        mask = generation.mask.clone()
        mask[: request.num_samples] = False
        mask[5:7] = False
        assert generation.logprobs is not None
        return replace(generation, mask=mask, logprobs=torch.where(mask, generation.logprobs, 0.0))


class CutEngine(NativeEngine):
    """Nothing ends."""

    def generate(self, backbone: Backbone, request: RolloutRequest) -> Generation:
        generation = super().generate(backbone, request)
        return replace(generation, finished=torch.zeros_like(generation.finished))


@pytest.fixture(scope="module")
def template(tiny_model_dir: Path) -> Backbone:
    """Loaded once for all modules."""
    return template_of(ModelSpec(name=str(tiny_model_dir)))


def _after(
    name: str, model_dir: Path, template: Backbone, reward: Reward | None = None, **options: Any
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Parameters before and after an iteration of one step, and what it logs."""
    given: dict[str, Any] = {
        "sampling": SAMPLING,
        "kl": o.FixedKL(0.1),
        "updates": Updates(epochs=1),
    } | options
    if issubclass(POLICIES[name], modules.PPOPtxPolicyModule):
        given["ptx_coef"] = 0.3  # else the text is all that counts
    if issubclass(POLICIES[name], modules.DAPOPolicyModule):
        given["overlong_penalty"] = 0.0  # which depends on length, even where the reward doesn't
    module: PolicyModule = build(
        make_policy(
            POLICIES[name], ModelSpec(name=str(model_dir)), reward or TokenReward(), **given
        ),
        template,
    )
    before = parameters_of(module)
    logged = iterate(module, full_batch(model_dir))
    return before, parameters_of(module), logged


@pytest.mark.parametrize("name", POLICIES)
def test_a_shift_of_the_reward_changes_nothing_where_there_is_a_baseline(
    name: str, tiny_model_dir: Path, template: Backbone
) -> None:
    before, plain, _ = _after(name, tiny_model_dir, template)
    _, shifted, _ = _after(name, tiny_model_dir, template, Shifted())
    assert not torch.equal(plain, before)
    if name in SEES_A_SHIFT:
        assert float((shifted - plain).abs().max()) > 1e-4
    else:
        torch.testing.assert_close(shifted, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", POLICIES)
def test_equal_rewards_teach_nothing(name: str, tiny_model_dir: Path, template: Backbone) -> None:
    before, after, logged = _after(name, tiny_model_dir, template, Constant())
    assert torch.isfinite(after).all()
    assert logged["train/skipped_steps"] == 0
    if name not in NO_BASELINE:
        torch.testing.assert_close(
            after, before, rtol=0, atol=5e-5
        )  # whitening blows rounding errors up a little


@pytest.mark.parametrize("name", POLICIES)
def test_completions_without_tokens_are_finite(
    name: str, tiny_model_dir: Path, template: Backbone
) -> None:
    before, after, logged = _after(name, tiny_model_dir, template, engine=MuteEngine())
    assert torch.isfinite(after).all()
    assert not torch.equal(after, before)
    assert all(math.isfinite(value) for value in logged.values())
    assert logged["train/skipped_steps"] == 0


@pytest.mark.parametrize("name", POLICIES)
def test_a_batch_of_truncated_completions_is_finite(
    name: str, tiny_model_dir: Path, template: Backbone
) -> None:
    options: dict[str, Any] = {"engine": CutEngine()}
    if name != "DistillationPolicyModule":  # whose teacher says where to end
        options["missing_eos_penalty"] = 1.0
    before, after, logged = _after(name, tiny_model_dir, template, **options)
    assert logged["train/completions/clipped_ratio"] == 1.0
    assert torch.isfinite(after).all()
    assert not torch.equal(after, before)


@pytest.mark.parametrize("name", POLICIES)
def test_groups_of_one_train_or_are_refused(
    name: str, tiny_model_dir: Path, template: Backbone
) -> None:
    try:
        _, after, logged = _after(name, tiny_model_dir, template, num_samples=1)
    except ConfigurationError as error:
        if "num_samples" not in str(error):
            raise
        return
    assert torch.isfinite(after).all()
    assert logged["train/skipped_steps"] == 0
