"""A module of the user's own in the tabular world."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.modules import (
    BestOfNPolicyModule,
    DistillationPolicyModule,
    GroupPolicyModule,
    MixtureOpponent,
    NashMDPolicyModule,
    OnlineDPOPolicyModule,
    PolicyModule,
    PPOPolicyModule,
    PPOPtxPolicyModule,
    PreferenceModule,
    REBELPolicyModule,
    ReMaxPolicyModule,
    RLHFModule,
    SPPOPolicyModule,
    Teacher,
    XPOPolicyModule,
)
from lit_rlhf.verify import populations as data, targets
from lit_rlhf.verify.groups import per_token_optimum, ranked_optimum, shrunk_optimum
from lit_rlhf.verify.off_policy import OffPolicyCase, has_known_weights
from lit_rlhf.verify.online import PairCase, nash_optimum, sppo_optimum, xpo_optimum
from lit_rlhf.verify.policy import CriticCase, PolicyCase
from lit_rlhf.verify.preference import PreferenceCase
from lit_rlhf.verify.runner import BETA, Case
from lit_rlhf.verify.tabular import TabularWorld, bandit, tree
from lit_rlhf.verify.variants import (
    BestOfNCase,
    PtxCase,
    ReMaxCase,
    TabularTeacher,
    best_of_n,
    ptx_optimum,
    teacher_of,
)

_GROUP = 2
"""Samples of a prompt, of a module that draws several: all groups of more are too many."""
_PTX = 0.2
"""The text's weight beside rewards of order 1."""


def custom_cases(make_module: Callable[[], RLHFModule]) -> list[Case]:
    r"""The cases of a module: data by the kind of its loss, and as optimum $\pi_{ref}e^{r/\beta}/Z$.

    $\beta$ is `beta` of a preference loss and `kl.value` of a policy module; the latter, and the loss of an online
    preference method, count as 0.5 at least, for with a KL far weaker than the world's rewards (of order 1) the optimum
    is nearly a single completion. The library's methods that claim another optimum, and classes under them, are held to
    that one. A method of yours that claims another says so by a method `tabular_optimum(world)` of the module, or of
    its loss or advantage, that returns the probabilities (Y,) of `world.completions`; see `lit_rlhf.verify.targets` for
    what it can be made of. A policy module that draws several samples of a prompt draws two here.

    A policy gradient whose surrogate is one of the library's, or of a class under one, has a second case: its gradient
    on rollouts of an earlier policy; see `OffPolicyCase`.

    Args:
        make_module: Makes the module, without a backbone, anew at each call.

    Raises:
        ConfigurationError: The module is neither a `PreferenceModule` nor a `PolicyModule`.
    """
    module = make_module()
    name = type(module).__name__
    if isinstance(module, PreferenceModule):
        name = f"{name} ({type(module.objective).__name__})"
        return [_preference_case(name, module, make_module)]
    if isinstance(module, PolicyModule):
        return _policy_cases(name, make_module)
    raise ConfigurationError(
        f"{name} can't be verified: the tabular world knows subclasses of PreferenceModule and PolicyModule. Reward "
        "losses are verified through their own table."
    )


def _preference_case(
    name: str, module: PreferenceModule, make_module: Callable[[], RLHFModule]
) -> Case:
    world = tree()
    best, text = _optimum(world, getattr(module.objective, "beta", None), module.objective, module)

    def around(loss: o.PreferenceLoss) -> PreferenceModule:
        fresh = cast("PreferenceModule", make_module())
        fresh.objective = loss
        return fresh

    def fresh_loss() -> o.PreferenceLoss:
        return cast("PreferenceModule", make_module()).objective

    population = _population(world, module.objective)
    case = partial(PreferenceCase, training="follow", make_module=around)
    return case(name, text, world, fresh_loss, population, best)


def _policy_cases(name: str, make_module: Callable[[], RLHFModule]) -> list[Case]:
    def fresh(*_: object) -> PolicyModule:
        made = cast("PolicyModule", make_module())
        if isinstance(made.reference, Teacher):
            made.reference = TabularTeacher(world, teacher_of(world))
        made.num_samples = 1 if getattr(made, "opponent", None) else min(made.num_samples, _GROUP)
        if made.kl.value < BETA:
            made.kl = o.FixedKL(BETA)
        if isinstance(made, OnlineDPOPolicyModule):
            made.pair_loss.beta = max(made.pair_loss.beta, BETA)
        if isinstance(made, PPOPtxPolicyModule):
            made.ptx_coef, made.gae = _PTX, replace(made.gae, whiten=False)
        return made

    world = bandit() if isinstance(make_module(), PPOPtxPolicyModule) else tree()
    module = fresh()
    best, text = _policy_optimum(world, module)
    group = 2 if getattr(module, "opponent", None) else module.num_samples
    kind, more = _kind(module)
    case = kind(name, text, world, fresh, best, group=group, training="either", **more)
    without = isinstance(module, REBELPolicyModule | DistillationPolicyModule)
    compared = "drawn" not in more and not without
    if not compared or module.surrogate.on_policy_only or not has_known_weights(module.surrogate):
        return [case]
    return [case, OffPolicyCase.of(case)]


def _kind(module: PolicyModule) -> tuple[type[PolicyCase], dict[str, Any]]:
    """The case of a module, and what it is given beside what all are."""
    if isinstance(module, OnlineDPOPolicyModule | NashMDPolicyModule):
        mixture = {"mixture": getattr(module.opponent, "weight", 1.0)}
        return PairCase, {"drawn": _drawn(module), **mixture}
    if isinstance(module, PPOPtxPolicyModule):
        return PtxCase, {}
    if isinstance(module, PPOPolicyModule):
        return CriticCase, {}
    if isinstance(module, BestOfNPolicyModule):
        return BestOfNCase, {}
    return (ReMaxCase if isinstance(module, ReMaxPolicyModule) else PolicyCase), {}


def _drawn(module: OnlineDPOPolicyModule | NashMDPolicyModule) -> Any:
    """Who draws a pair; see `PairCase`."""
    if isinstance(module, SPPOPolicyModule):
        return "before"
    if isinstance(module.opponent, MixtureOpponent):
        return "mixture"
    return "policy" if module.opponent is None else "reference"


def _policy_optimum(world: TabularWorld, module: PolicyModule) -> tuple[Tensor, str]:
    """What a module claims, by the nearest class or part of the library that claims something of its own."""
    beta, advantage = module.kl.value, getattr(module, "advantage", None)
    if any(hasattr(owner, "tabular_optimum") for owner in (module, advantage)):
        return _optimum(world, beta, module, advantage)
    if isinstance(module, DistillationPolicyModule):
        return teacher_of(world), "the teacher"
    if isinstance(module.reference, Teacher):
        world = replace(world, reference=teacher_of(world))
    if isinstance(module, OnlineDPOPolicyModule | NashMDPolicyModule):
        return _pair_optimum(world, module)
    if isinstance(module, PPOPtxPolicyModule):
        return ptx_optimum(world, beta, module.ptx_coef), "r - beta u + g D/pi = L"
    cut = module.missing_eos_penalty * (~world.finished).double()
    world = replace(world, rewards=world.rewards - cut)
    if isinstance(module, BestOfNPolicyModule):
        gain = (best_of_n(world, module.best_of.n) / world.reference).log()
        world = replace(world, rewards=gain)
    if isinstance(module, GroupPolicyModule) and module.kl_loss is not None:
        return _group_optimum(world, module)
    return _optimum(world, beta, module)


def _pair_optimum(
    world: TabularWorld, module: OnlineDPOPolicyModule | NashMDPolicyModule
) -> tuple[Tensor, str]:
    if isinstance(module, NashMDPolicyModule):
        mixture = getattr(module.opponent, "weight", 1.0)
        return nash_optimum(world, module.kl.value, mixture), "ref exp(P(y>mix)/beta)"
    beta = module.pair_loss.beta
    if isinstance(module, XPOPolicyModule):
        return xpo_optimum(world, beta, module.alpha), "XPO's, with its alpha"
    if isinstance(module, SPPOPolicyModule):
        return sppo_optimum(world, beta), "SPPO's, of a step"
    return _optimum(world, beta, module)


def _group_optimum(world: TabularWorld, module: GroupPolicyModule) -> tuple[Tensor, str]:
    """Of a KL that is a term of the loss, beside advantages that may be scaled."""
    size, beta = module.num_samples, module.kl.value
    if isinstance(module.advantage, o.GroupCentered):
        return shrunk_optimum(world, size, beta), "ref exp(r (G-1)/(G beta))"
    if not isinstance(module.advantage, o.GroupNormalized):
        return _optimum(world, beta, module)
    if isinstance(module.reduction, o.SequenceMean):
        return per_token_optimum(world, size, beta), "tokens' pulls balance, A and k3 over n"
    return ranked_optimum(world, size, beta), "ref exp(E[A|y]/beta)"


def _population(world: TabularWorld, loss: o.PreferenceLoss) -> data.Population:
    if isinstance(loss, o.SoftLabelDPO):
        return data.soft_pairs(world)
    if isinstance(loss, o.PointwiseLoss):
        if "score" in loss.columns:
            return data.scalar_scores(world)
        return data.binary_labels(world, world.rewards.sigmoid())
    if isinstance(loss, o.ListwiseLoss):
        return data.scored_pairs(world)
    return data.rated_pairs(world)


def _optimum(world: TabularWorld, beta: float | None, *owners: object) -> tuple[Tensor, str]:
    for owner in owners:
        claim = getattr(owner, "tabular_optimum", None)
        if claim is not None:
            return cast("Tensor", claim(world)), "its own tabular_optimum"
    if beta is None:
        raise ConfigurationError(
            f"{type(owners[0]).__name__} has no `beta`, so pi* is not defined. Give it a method tabular_optimum(world) "
            "that returns the probabilities it must end in."
        )
    return targets.tilted(world.reference, world.rewards / beta), f"pi* = ref exp(r/{beta:g})"
