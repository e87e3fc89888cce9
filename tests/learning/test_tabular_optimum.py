"""Each method against its exact optimum: the table of `lit-rlhf verify`, and what it stands on."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf import modules, objectives as o
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import (
    DrGRPOPolicyModule,
    GroupPolicyModule,
    OnlineDPOPolicyModule,
    PolicyModule,
    PPOPolicyModule,
    PreferenceModule,
    RLHFModule,
    RLOOPolicyModule,
    SupervisedModule,
)
from lit_rlhf.modules.ppo import PPORollout
from lit_rlhf.rewards import NoReward
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import EstimatedRollout, EvaluatedRollout, LossOutput, ScoredRollout
from lit_rlhf.verify import (
    PolicyCase,
    PreferenceCase,
    RewardCase,
    all_cases,
    cases_of,
    populations,
    targets,
    verify,
    verify_case,
    verify_module,
)
from lit_rlhf.verify.custom import custom_cases
from lit_rlhf.verify.off_policy import OffPolicyCase
from lit_rlhf.verify.runner import (
    BETA,
    GRADIENT_TOLERANCE,
    PI_STAR,
    expected_gradient,
    gradient_norm,
)
from lit_rlhf.verify.tabular import TabularWorld, bandit, total_variation, tree
from tests.public import public_names
from tests.tolerances import FP64
from tests.unit.modules.one_iteration import StrangeTeacher, make_policy
from tests.walks import walk

CASES = all_cases()
QUICK = [name for name, case in CASES.items() if case.training != "descend"]
FIRST = list({name.split(" (")[0]: name for name in reversed(QUICK)}.values())
"""One of each method: the others differ by its options, the world or the size of the groups."""
EXACT = [name for name, case in CASES.items() if case.target.startswith(PI_STAR)]
PREFERENCE = {name: case for name, case in CASES.items() if isinstance(case, PreferenceCase)}
OTHER = [
    name
    for name, case in CASES.items()
    if name not in EXACT and not isinstance(case, RewardCase | OffPolicyCase)
]


@pytest.mark.parametrize("name", walk(CASES, *FIRST))
def test_gradient_vanishes_at_the_target_and_training_arrives(name: str) -> None:
    row = verify_case(CASES[name])
    assert row.gradient_norm < GRADIENT_TOLERANCE, row
    assert row.distance < 1e-3, row
    assert row.ok


@pytest.mark.parametrize("name", OTHER)
def test_the_rlhf_optimum_is_no_stationary_point_of_the_others(name: str) -> None:
    case = CASES[name]
    star = targets.tilted(case.world.reference, case.world.rewards / BETA)
    assert gradient_norm(case, star) > 1e-3
    assert total_variation(star, case.optimum) > 1e-3


@pytest.mark.parametrize("name", EXACT)
def test_the_reference_is_no_stationary_point(name: str) -> None:
    """Else an optimum that is the reference would pass for a loss that does nothing."""
    assert gradient_norm(CASES[name], CASES[name].world.reference) > 1e-3


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if isinstance(case, RewardCase)]
)
def test_equal_scores_are_no_stationary_point_of_reward_losses(name: str) -> None:
    assert gradient_norm(CASES[name], torch.zeros_like(CASES[name].optimum)) > 1e-3


def test_every_preference_loss_has_a_row() -> None:
    losses = {type(case.make_loss()).__name__ for case in PREFERENCE.values()}
    assert losses == _concrete(o.PreferenceLoss)


def test_every_reward_loss_has_a_row() -> None:
    losses = {
        type(case.make_loss()).__name__ for case in CASES.values() if isinstance(case, RewardCase)
    }
    assert losses == _concrete(o.RewardLoss) - {"RewardLossSum"}


def test_every_policy_module_has_a_row() -> None:
    found = {type(case.module()) for case in CASES.values() if isinstance(case, PolicyCase)}
    known = {getattr(modules, name) for name in public_names("lit_rlhf.modules")}
    assert found == {kind for kind in known if issubclass(kind, PolicyModule)} - {PolicyModule}


def _concrete(base: type) -> set[str]:
    things = {name: getattr(o, name) for name in public_names("lit_rlhf.objectives")}
    return {
        n
        for n, x in things.items()
        if isinstance(x, type) and issubclass(x, base) and not inspect.isabstract(x)
    }


def test_verify_takes_names_and_refuses_others() -> None:
    (row,) = verify(["DPO"])
    assert (row.method, row.ok) == ("DPO", True)
    assert row.seconds > 0
    assert [case.method for case in cases_of(["REINFORCE", "drgrpo"])] == [
        *("REINFORCE", "REINFORCE (bandit)", "REINFORCE (held to a teacher)"),
        *(f"DrGRPO ({world}, G={group})" for world in ("bandit", "tree") for group in (2, 3)),
    ]
    with pytest.raises(ConfigurationError, match=r"no method 'DPQ'.*DPO"):
        verify(["DPQ"])


def test_a_wrong_loss_is_found_out() -> None:
    class Forgetful(o.DPO):
        """Forgets the reference."""

        def forward(self, chosen: o.Completion, rejected: o.Completion) -> Tensor:
            zeros = torch.zeros_like(chosen.logprobs)
            return super().forward(
                replace(chosen, ref_logprobs=zeros), replace(rejected, ref_logprobs=zeros)
            )

    world = tree()
    star = targets.tilted(world.reference, world.rewards / BETA)
    row = verify_case(
        PreferenceCase(
            "Forgetful",
            PI_STAR,
            world,
            partial(Forgetful, BETA),
            populations.rated_pairs(world),
            star,
        )
    )
    assert not row.ok
    assert row.gradient_norm > 1e-3
    assert row.distance > 0.05


# -- modules of the user's own -----------------------------------------------------------------------------------------


class Twice(o.DPO):
    """DPO of half the beta it is given, which it says."""

    def forward(self, chosen: o.Completion, rejected: o.Completion) -> Tensor:
        return o.DPO(self.beta / 2)(chosen, rejected)

    def tabular_optimum(self, world: TabularWorld) -> Tensor:
        return targets.tilted(world.reference, 2 * world.rewards / self.beta)


class LeaveOneOutModule(PolicyModule):
    """RLOO by a module that is no `GroupPolicyModule`."""

    def estimate(self, rollout: EvaluatedRollout) -> EstimatedRollout:
        mask, rewards = rollout.response_mask, self.shape_rewards(rollout)
        return rollout.with_advantages(o.LeaveOneOut()(rewards, mask, rollout.num_samples))


class Halves(o.GroupCentered):
    """Of two samples it gives half of the gradient, which it says."""

    def tabular_optimum(self, world: TabularWorld) -> Tensor:
        return targets.tilted(world.reference, world.rewards / (2 * 0.7))


SPEC = ModelSpec(config={})
OWN: list[tuple[Callable[[], RLHFModule], bool, str]] = [
    (lambda: PreferenceModule(SPEC, o.DPO(0.7)), True, "ref exp(r/0.7)"),
    (lambda: PreferenceModule(SPEC, o.SoftLabelDPO(0.7)), True, "ref exp(r/0.7)"),
    (lambda: PreferenceModule(SPEC, o.PlackettLuceDPO(0.7)), True, "ref exp(r/0.7)"),
    (lambda: PreferenceModule(SPEC, o.DROV(0.7)), True, "ref exp(r/0.7)"),
    (lambda: PreferenceModule(SPEC, o.IPO(0.7)), False, "ref exp(r/0.7)"),
    (lambda: PreferenceModule(SPEC, Twice(0.7)), True, "tabular_optimum"),
    (
        lambda: GroupPolicyModule(SPEC, NoReward(), kl=o.FixedKL(0.7), reduction=o.SequenceSum()),
        True,
        "ref exp(r/0.7)",
    ),
    (lambda: OnlineDPOPolicyModule(SPEC, NoReward(), loss=o.DPO(0.7)), True, "ref exp(r/0.7)"),
    (
        lambda: LeaveOneOutModule(
            SPEC, NoReward(), num_samples=4, kl=o.FixedKL(0.7), reduction=o.SequenceSum()
        ),
        True,
        "ref exp(r/0.7)",
    ),
    (
        lambda: DrGRPOPolicyModule(
            SPEC,
            NoReward(),
            advantage=Halves(),
            kl=o.FixedKL(0.7),
            sampling=Sampling(max_new_tokens=2),
        ),
        True,
        "tabular_optimum",
    ),
    (
        lambda: RLOOPolicyModule(
            SPEC, NoReward(), reference=StrangeTeacher(), kl=o.FixedKL(0.7), num_samples=2
        ),
        True,
        "ref exp(r/0.7)",
    ),
]


@pytest.mark.parametrize(("make", "ok", "target"), OWN)
def test_a_module_of_the_users_own(make: Callable[[], RLHFModule], ok: bool, target: str) -> None:
    row, *more = verify_module(make)
    assert row.ok == ok, row
    assert target in row.target
    assert all(each.ok for each in more), more


NAMED = sorted(
    name
    for name in public_names("lit_rlhf.modules")
    if issubclass(kind := getattr(modules, name), PolicyModule) and kind is not PolicyModule
)


@pytest.mark.parametrize("name", walk(NAMED, "GRPOPolicyModule", "REINFORCEPolicyModule"))
def test_every_policy_module_passes_through_the_users_door(name: str) -> None:
    """With its own defaults."""
    rows = verify_module(lambda: make_policy(getattr(modules, name), SPEC, NoReward()))
    assert all(row.ok for row in rows), rows


class InvertedClip(o.ClippedSurrogate):
    """Leaves the gradient where it should stop, and stops it where it should go on."""

    def __call__(
        self, logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor
    ) -> LossOutput:
        ratio = (logprobs - old).exp()
        clipped = ratio.clamp(1 - self.low, 1 + self.high)
        return LossOutput(-torch.maximum(ratio * advantages, clipped * advantages))


class NoOldPolicy(PPOPolicyModule):
    """Takes every ratio for 1."""

    def surrogate_loss(self, logprobs: Tensor, minibatch: EstimatedRollout) -> LossOutput:
        return super().surrogate_loss(logprobs, replace(minibatch, old_logprobs=logprobs.detach()))


class Swapped(RLOOPolicyModule):
    """The ratio of the old policy to the new one."""

    def surrogate_loss(self, logprobs: Tensor, minibatch: EstimatedRollout) -> LossOutput:
        ratio = torch.where(minibatch.response_mask, minibatch.old_logprobs - logprobs, 0.0).exp()
        return LossOutput(minibatch.advantages * ratio)


class WhitenedReturns(PPOPolicyModule):
    """Fits the critic to whitened advantages."""

    def estimate(self, rollout: EvaluatedRollout) -> PPORollout:
        estimated = super().estimate(rollout)
        return replace(estimated, returns=estimated.advantages + estimated.values)


class NoPenalty(PPOPolicyModule):
    """Forgets that a completion was cut."""

    def penalized_scores(self, rollout: ScoredRollout) -> Tensor:
        return rollout.scores.total


WRONG: list[Callable[[], RLHFModule]] = [
    lambda: PPOPolicyModule(SPEC, NoReward(), surrogate=InvertedClip()),
    lambda: RLOOPolicyModule(SPEC, NoReward(), surrogate=InvertedClip()),
    lambda: NoOldPolicy(SPEC, NoReward()),
    lambda: Swapped(SPEC, NoReward()),
    lambda: WhitenedReturns(SPEC, NoReward()),
    lambda: NoPenalty(SPEC, NoReward()),
]


@pytest.mark.parametrize("make", WRONG)
def test_what_is_wrong_off_policy_alone_is_found_out(make: Callable[[], RLHFModule]) -> None:
    *_, off_policy = custom_cases(make)
    assert isinstance(off_policy, OffPolicyCase)
    assert not verify_case(off_policy).ok


def test_what_cannot_be_verified_says_why() -> None:
    with pytest.raises(ConfigurationError, match="SupervisedModule can't be verified"):
        verify_module(lambda: SupervisedModule(SPEC))
    with pytest.raises(ConfigurationError, match="tabular_optimum"):
        verify_module(lambda: PreferenceModule(SPEC, o.NLL()))


# -- what no closed form is known for: invariants of the whole path ----------------------------------------------------


@pytest.mark.parametrize("name", ["DPO", "RobustDPO", "PlackettLuceDPO", "InfoNCA", "SavageGPO"])
def test_a_constant_reward_of_the_prompt_changes_nothing(name: str) -> None:
    case = PREFERENCE[name]
    population = dict(case.population)
    if "score" in population:
        population["score"] = population["score"] + 5.0
    shifted = PreferenceCase(
        case.method, case.target, case.world, case.make_loss, population, case.optimum
    )
    assert gradient_norm(shifted, case.optimum) < GRADIENT_TOLERANCE


def _slopes_at_the_reference(
    world: TabularWorld,
) -> dict[str, tuple[Callable[[], o.PreferenceLoss], populations.Population, Tensor]]:
    r"""Losses without a finite optimum, their data, and $dE[L]/du_y$ at u = 0, where every sigmoid has slope 1/4."""
    mu, p = populations.skewed(world), world.rewards.sigmoid()
    wins = targets.win_rates(populations.preference_probabilities(world), mu)
    won, lost = 2 * mu * wins, 2 * mu * (1 - wins)
    pairs, labels = populations.rated_pairs(world, mu), populations.binary_labels(world, p, mu)
    everything = populations.undesirable(world, range(len(mu)))
    quarter = BETA / 4
    return {
        "KTO": (partial(o.KTO, BETA, 1.2, 0.7), labels, -mu * (1.2 * p - 0.7 * (1 - p)) * quarter),
        "UnpairedAPOZero": (partial(o.UnpairedAPOZero, BETA), labels, -mu * (2 * p - 1) * quarter),
        "APOZero": (partial(o.APOZero, BETA), pairs, (lost - won) * quarter),
        "APODown": (partial(o.APODown, BETA), pairs, lost * quarter),
        "NPO": (partial(o.NPO, BETA), everything, torch.full_like(mu, 1 / len(mu))),
    }


@pytest.mark.parametrize("name", _slopes_at_the_reference(tree()))
def test_losses_without_an_optimum_start_as_by_hand(name: str) -> None:
    world = tree()
    make, population, slopes = _slopes_at_the_reference(world)[name]
    gradient = expected_gradient(
        PreferenceCase(name, "", world, make, population, world.reference), world.reference
    )
    backbone = world.backbone()
    out = backbone(world.batch([range(7)]), num_branches=7, logprobs=True)
    (out.logprobs.sum(-1) * slopes).sum().backward()
    assert_close(gradient, backbone.model.lm_head.weight.grad, **FP64)


def test_length_desensitized_dpo_is_dpo_where_lengths_are_equal_or_weights_one() -> None:
    flat, deep = bandit(), tree()
    for world, loss in (
        (flat, partial(o.LengthDesensitizedDPO, BETA, 0.3)),
        (deep, partial(o.LengthDesensitizedDPO, BETA, 1.0)),
    ):
        star = targets.tilted(world.reference, world.rewards / BETA)
        case = PreferenceCase("LD-DPO", PI_STAR, world, loss, populations.rated_pairs(world), star)
        assert gradient_norm(case, star) < GRADIENT_TOLERANCE


def test_filtered_beta_dpo_leaves_the_optimum() -> None:
    """Dropping pairs by their gap depends on which completion won, so it biases: only `drop=0` is exact."""
    case = PREFERENCE["BetaDPO (drop=0)"]
    biased = PreferenceCase(
        "", "", case.world, partial(o.BetaDPO, BETA, drop=0.5), case.population, case.optimum
    )
    assert gradient_norm(biased, case.optimum) > 1e-3


# -- the world and the targets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "world", [bandit(2), bandit(5), bandit(7), tree()], ids=["two", "five", "seven", "tree"]
)
def test_a_tabular_policy_can_be_any_distribution(world: TabularWorld) -> None:
    backbone = world.backbone()
    assert_close(world.policy(backbone), world.reference, **FP64)
    wanted = torch.rand(len(world.completions), dtype=torch.float64)
    wanted /= wanted.sum()
    world.set_policy(backbone, wanted)
    assert_close(world.policy(backbone), wanted, **FP64)


def test_the_tree_has_seven_completions_of_two_lengths() -> None:
    world = tree()
    assert len(world.completions) == 7
    assert sorted(set(world.lengths.tolist())) == [1.0, 2.0]
    assert world.completions[0] == (2,)


@pytest.mark.parametrize("branching", ["shared", "expanded"])
def test_both_ways_of_branching_give_the_table(branching: str) -> None:
    world = tree()
    backbone = world.backbone()
    backbone._runner.branching = branching  # type: ignore[assignment]
    assert_close(world.policy(backbone), world.reference, **FP64)


POPULATIONS: Sequence[populations.Population] = [
    populations.rated_pairs(tree()),
    populations.rated_pairs(tree(), flip=0.2),
    populations.rated_pairs(bandit(), edges=populations.chain(bandit())),
    populations.soft_pairs(tree()),
    populations.binary_labels(tree(), tree().rewards.sigmoid()),
    populations.scalar_scores(tree()),
    populations.rankings(bandit(), 3),
    populations.scored_pairs(tree()),
    populations.scored_list(tree()),
    populations.undesirable(bandit(), [1, 3]),
    populations.demonstrations_against(tree(), tree().rewards.softmax(-1), tree().reference),
]


@pytest.mark.parametrize("population", POPULATIONS)
def test_populations_are_distributions(population: populations.Population) -> None:
    assert population["weight"].sum().item() == pytest.approx(1.0)
    assert (population["weight"] >= 0).all()
    assert len(population["input_ids"]) == len(population["weight"])


def test_targets_are_distributions() -> None:
    for case in CASES.values():
        if isinstance(case, RewardCase):
            continue
        assert case.optimum.sum().item() == pytest.approx(1.0)
        assert (case.optimum >= 0).all()


def test_targets_at_their_limits() -> None:
    world = tree()
    star = targets.tilted(world.reference, world.rewards / BETA)
    assert_close(
        targets.alpha_divergence_optimum(world.reference, world.rewards, BETA, 1e-6),
        star,
        rtol=1e-4,
        atol=1e-4,
    )
    forward = targets.forward_kl_optimum(world.reference, world.rewards, BETA)
    assert_close(
        targets.alpha_divergence_optimum(world.reference, world.rewards, BETA, 1.0),
        forward,
        rtol=1e-8,
        atol=1e-8,
    )
    assert_close(targets.desensitized_tree(world.reference, world.rewards, BETA, 1.0), star, **FP64)
    p = torch.tensor([0.6, 0.9], dtype=torch.float64)
    assert_close(targets.target_margin(p, 0.0), torch.logit(p), **FP64)
    margin = targets.target_margin(p, 0.7)  # where p phi'(z) = (1 - p) phi'(-z)
    slopes = torch.sigmoid(0.7 - margin), torch.sigmoid(0.7 + margin)
    assert_close(p * slopes[0], (1 - p) * slopes[1], **FP64)
    value = BETA * (world.reference.log() + world.rewards / BETA).logsumexp(-1)
    log_ratio = (star / world.reference).log()
    assert_close(world.rewards - BETA * log_ratio, value.expand(7), **FP64)
