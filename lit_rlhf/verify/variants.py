"""Policy methods with more in their rollouts than scores, those that are no plain policy gradient, and distillation."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.modules import (
    GAE,
    BestOfNPolicyModule,
    DAPOPolicyModule,
    DistillationPolicyModule,
    GroupPolicyModule,
    PolicyModule,
    PPOPtxPolicyModule,
    REBELPolicyModule,
    REINFORCEPolicyModule,
    ReMaxPolicyModule,
    RLHFModule,
    Teacher,
    Updates,
)
from lit_rlhf.modules.best_of_n import AT_MOST, BELOW
from lit_rlhf.modules.collect import score_completions
from lit_rlhf.modules.remax import GREEDY
from lit_rlhf.rewards import ConstrainedReward, Reward
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import Completions, EvaluatedRollout, Scores
from lit_rlhf.verify import targets
from lit_rlhf.verify.online import PairCase
from lit_rlhf.verify.policy import CriticCase, MakeModule, PolicyCase
from lit_rlhf.verify.runner import BETA, PI_STAR, Training, optimum
from lit_rlhf.verify.tabular import TabularWorld, bandit, tree

_ETA = 0.7
_PTX = 0.2
_MULTIPLIER = 0.6
TEXT = (0, 0, 1, 3)
"""The completions, by number, that PPO-ptx is not to forget."""


class TabularReward(Reward):
    """A number for each completion of a world.

    Args:
        world: Whose completions they are.
        values: (Y,).
    """

    def __init__(self, world: TabularWorld, values: Tensor) -> None:
        super().__init__()
        self.values = dict(zip(world.completions, values.tolist(), strict=True))

    def score(self, completions: Completions) -> Scores:
        """(N,) float32."""
        lengths = completions.response_mask.sum(-1).tolist()
        rows = zip(completions.tokens.tolist(), lengths, strict=True)
        return Scores(torch.tensor([self.values[tuple(tokens[:n])] for tokens, n in rows]))


@dataclass(frozen=True)
class ReMaxCase(PolicyCase):
    """The baseline is the score of the completion that the policy, as it is, decodes greedily."""

    def collect(self, module: PolicyModule, groups: list[tuple[int, ...]]) -> EvaluatedRollout:
        """The groups as a rollout with baselines."""
        rollout = super().collect(module, groups)
        taken = greedy_completion(self.world, self.world.policy(module.backbone))
        score = self.world.rewards[taken]
        greedy = score.expand(len(rollout.response_mask))
        return replace(rollout, scores=Scores(rollout.scores.total, {GREEDY: greedy}))


@dataclass(frozen=True)
class PtxCase(CriticCase):
    """PPO's expected loss, and that of the text."""

    def expected_loss(self, module: RLHFModule) -> Tensor:
        """Both, as an optimizer step adds them."""
        module = cast("PPOPtxPolicyModule", module)
        loss, mask = module.text_loss(self.world.batch([[y] for y in TEXT]))
        return super().expected_loss(module) + module.ptx_coef * loss[mask].mean()


@dataclass(frozen=True)
class ScoredCase(PolicyCase):
    """Scores come from the module's own reward."""

    def collect(self, module: PolicyModule, groups: list[tuple[int, ...]]) -> EvaluatedRollout:
        """The groups as a rollout with the reward's scores."""
        rollout = super().collect(module, groups)
        generation = rollout.completions
        prompts, texts = rollout.prompts, [""] * len(generation.tokens)
        drawn = generation.tokens, generation.mask, generation.finished
        completions = Completions(prompts.ids, prompts.mask, *drawn, texts, texts)
        scores = score_completions(module.reward, completions, 0)
        return replace(rollout, scores=Scores(scores.total.double()))


def variant_cases() -> list[PolicyCase]:
    """On the tree, and on the bandit where the target is one of single tokens."""
    deep, flat, few = tree(), bandit(), bandit(3)
    options: dict[str, Any] = {"kl": o.FixedKL(BETA), "sampling": Sampling(max_new_tokens=2)}
    remax = partial(ReMaxPolicyModule, **options)
    rebel = partial(REBELPolicyModule, eta=_ETA, **options)
    gae, once = GAE(lam=1.0, whiten=False), Updates(epochs=1)
    ptx = partial(PPOPtxPolicyModule, ptx_coef=_PTX, gae=gae, updates=once, **options)
    step = targets.tilted(deep.reference, _ETA * deep.rewards)
    kept, three = ptx_optimum(flat, BETA, _PTX), partial(rebel, num_samples=3)
    short = targets.tilted(deep.reference, (deep.rewards - (deep.lengths - 1)) / BETA)
    return [
        ReMaxCase("ReMax", PI_STAR, deep, remax, optimum(deep), group=1),
        ReMaxCase("ReMax (bandit)", PI_STAR, few, remax, optimum(few), group=1, training="descend"),
        PolicyCase("REBEL", PI_STAR, deep, rebel, optimum(deep)),
        PairCase("REBEL (a step)", "ref exp(eta r)", deep, rebel, step, drawn="before"),
        PolicyCase("REBEL (three samples)", PI_STAR, few, three, optimum(few), group=3),
        PolicyCase("DAPO (overlong)", "of r - (n - 1)", deep, _overlong(options), short),
        PtxCase("PPO-ptx", "r - beta u + g D/pi = L", flat, ptx, kept, group=1, training="descend"),
        _constrained("ConstrainedReward", deep, options),
        replace(_constrained("ConstrainedReward (bandit)", few, options), training="descend"),
    ]


def _overlong(options: dict[str, Any]) -> MakeModule:
    """DAPO's shaping without its normalisation, whose optimum on the tree is known."""
    return partial(
        DAPOPolicyModule,
        advantage=o.LeaveOneOut(),
        kl_loss=o.SequenceK2(),
        reduction=o.SequenceSum(),
        num_samples=2,
        overlong_buffer=1,
        **options,
    )


def _constrained(name: str, world: TabularWorld, options: dict[str, Any]) -> PolicyCase:
    cost = world.rewards.flip(0) ** 2

    def make(spec: Any, reward: Reward) -> PolicyModule:
        del reward
        both = TabularReward(world, world.rewards), TabularReward(world, cost)
        held = ConstrainedReward(*both, multiplier=_MULTIPLIER, rate=0.0)
        return GroupPolicyModule(spec, held, reduction=o.SequenceSum(), num_samples=2, **options)

    tilt = (world.rewards - _MULTIPLIER * cost) / ((1 + _MULTIPLIER) * BETA)
    best = targets.tilted(world.reference, tilt)
    return ScoredCase(name, "ref exp((r - lam c)/((1+lam) beta))", world, make, best)


def ptx_optimum(world: TabularWorld, beta: float, coef: float) -> Tensor:
    r"""On a bandit: stationary where $\pi(r - \beta u) + g D$ is proportional to the policy, D that of `TEXT`."""
    counts = torch.bincount(torch.tensor(TEXT), minlength=len(world.rewards)).double()

    def slope(u: Tensor) -> Tensor:
        policy = world.reference * u.exp()
        return -(policy * (world.rewards - beta * u) + coef * counts / len(TEXT))

    return targets.anchored_optimum(world.reference, slope)


def greedy_completion(world: TabularWorld, policy: Tensor) -> int:
    """Number of the completion whose every token is the likeliest one."""
    prefix: tuple[int, ...] = ()
    while prefix not in world.completions:
        going_on = [y for y in world.completions if y[: len(prefix)] == prefix]
        following = sorted({y[: len(prefix) + 1] for y in going_on})
        inside = [[y[: len(p)] == p for y in world.completions] for p in following]
        mass = [float(policy[own].sum()) for own in inside]
        prefix = following[mass.index(max(mass))]
    return world.completions.index(prefix)


@dataclass(frozen=True)
class BestOfNCase(PolicyCase):
    """Each completion's place among those of the reference is the exact one: that of anchors without number."""

    def collect(self, module: PolicyModule, groups: list[tuple[int, ...]]) -> EvaluatedRollout:
        """The groups as a rollout with places."""
        rollout = super().collect(module, groups)
        picked, rewards = [y for group in groups for y in group], self.world.rewards
        lower, equal = rewards[None] < rewards[:, None], rewards[None] == rewards[:, None]
        every, kinds = self.world.reference, (lower, lower | equal)
        below, at_most = (torch.where(kept, every, 0.0).sum(-1)[picked] for kept in kinds)
        scores = Scores(rollout.scores.total, {BELOW: below, AT_MOST: at_most})
        return replace(rollout, scores=scores)


def best_of_n(world: TabularWorld, n: int) -> Tensor:
    """(Y,): of the best of n samples of the reference, drawn one after the other; equals don't replace."""
    ref, lower = world.reference, (world.rewards[None] < world.rewards[:, None]).double()
    best = ref
    for _ in range(n - 1):
        best = best * (1 - lower.T @ ref) + ref * (lower @ best)
    return best


def best_of_n_cases() -> list[PolicyCase]:
    """Without ties, and with rewards of which several are equal."""
    deep, few = tree(), bandit(3)
    worlds: list[tuple[str, TabularWorld, Training]] = [
        ("tree", deep, "follow"),
        ("ties", replace(deep, rewards=deep.rewards.round()), "follow"),
        ("bandit", few, "descend"),
    ]
    make = partial(BestOfNPolicyModule, num_samples=2, sampling=Sampling(max_new_tokens=2))
    text = "the best of n of the reference"
    cases: list[PolicyCase] = []
    for (name, world, training), n in product(worlds, (2, 3)):
        method, best = f"BestOfN ({name}, n={n})", best_of_n(world, n)
        made = partial(make, n=n)
        cases.append(BestOfNCase(method, text, world, made, best, training=training))
    return cases


_BETAS = (0.0, 0.3, 0.5, 1.0)
_GIVEN, _LMBDA = (0, 3, 3, 6), 0.4
"""Answers that are given, by number, and the weight of the others."""
_SHORT = Sampling(max_new_tokens=2)


class TabularTeacher(Teacher):
    """A distribution over a world's completions.

    Args:
        world: Whose completions they are.
        policy: (Y,).
    """

    def __init__(self, world: TabularWorld, policy: Tensor) -> None:
        super().__init__()
        self.world, self.policy = world, policy

    def attach(self, policy: Backbone, dtype: DTypeName | None = None) -> None:
        """Make its table."""
        self.model = self.world.backbone(self.policy).requires_grad_(False)

    def beside(self, policy: Backbone) -> tuple[Backbone, str | None]:
        """Itself."""
        return self.model, None


@dataclass(frozen=True)
class GivenCase(PolicyCase):
    """Distillation on samples and on given answers."""

    def expected_loss(self, module: RLHFModule) -> Tensor:
        """Both, as an optimizer step adds them."""
        module = cast("DistillationPolicyModule", module)
        loss, mask = module.text_loss(self.world.batch([[y] for y in _GIVEN]))
        return super().expected_loss(module) + (1 - module.lmbda) * loss[mask].mean()


def teacher_of(world: TabularWorld) -> Tensor:
    """What the world's teacher writes, (Y,): neither the reference nor what the rewards make of it."""
    return targets.tilted(world.reference, -world.rewards.flip(0))


def distillation_cases() -> list[PolicyCase]:
    """By divergences of whole distributions, and by the policy gradient that has the same aim."""
    text, cases = "the teacher", []
    options: dict[str, Any] = {
        "group": 1,
        "training": "either",
    }  # quasi-Newton steps may run astray
    for (where, world), beta in product((("tree", tree()), ("bandit", bandit())), _BETAS):
        name, make = f"Distillation ({where}, beta={beta:g})", partial(_distilled, world, beta, 1.0)
        cases.append(PolicyCase(name, text, world, make, teacher_of(world), **options))
    deep = tree()
    given = partial(_distilled, deep, 0.5, _LMBDA)
    held = targets.tilted(teacher_of(deep), deep.rewards / BETA)

    def by_gradient(spec: ModelSpec, reward: Reward) -> REINFORCEPolicyModule:
        teacher, kl = TabularTeacher(deep, teacher_of(deep)), o.FixedKL(BETA)
        return REINFORCEPolicyModule(spec, reward, reference=teacher, kl=kl, sampling=_SHORT)

    name, to_teacher = "REINFORCE (held to a teacher)", "teacher exp(r/beta)"
    both = "Distillation (given answers too)"
    return [
        *cases,
        GivenCase(both, text, deep, given, teacher_of(deep), **options),
        PolicyCase(name, to_teacher, deep, by_gradient, held, group=1),
    ]


def _distilled(
    world: TabularWorld, beta: float, lmbda: float, spec: ModelSpec, reward: Reward
) -> DistillationPolicyModule:
    teacher, jsd = TabularTeacher(world, teacher_of(world)), o.GeneralizedJSD(beta)
    make = partial(DistillationPolicyModule, divergence=jsd, lmbda=lmbda, sampling=_SHORT)
    return make(spec, reward, teacher=teacher)
