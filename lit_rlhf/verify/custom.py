"""A module of the user's own in the tabular world."""

from collections.abc import Callable
from typing import cast

from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.modules import PolicyModule, PreferenceModule, RLHFModule
from lit_rlhf.verify import populations as data
from lit_rlhf.verify import targets
from lit_rlhf.verify.policy import PolicyCase
from lit_rlhf.verify.preference import PreferenceCase
from lit_rlhf.verify.runner import Case
from lit_rlhf.verify.tabular import TabularWorld, tree

_GROUP = 2
"""Samples of a prompt, of a module that draws several: all groups of more are too many."""


def custom_case(make_module: Callable[[], RLHFModule]) -> Case:
    r"""A case for a module: data by the kind of its loss, and as optimum $\pi_{ref}e^{r/\beta}/Z$.

    $\beta$ is `loss.beta` of a preference module and `kl.value` of a policy module. A method that claims another
    optimum says so by a method `tabular_optimum(world)` of the module, or of its loss or advantage, that returns the
    probabilities (Y,) of `world.completions`; see `lit_rlhf.verify.targets` for what it can be made of. A policy
    module that draws several samples of a prompt draws two here.

    Args:
        make_module: Makes the module, without a backbone, anew at each call.

    Raises:
        ConfigurationError: The module is neither a `PreferenceModule` nor a `PolicyModule`.
    """
    module = make_module()
    name = type(module).__name__
    if isinstance(module, PreferenceModule):
        return _preference_case(f"{name} ({type(module.objective).__name__})", module, make_module)
    if isinstance(module, PolicyModule):
        return _policy_case(name, module, make_module)
    raise ConfigurationError(
        f"{name} can't be verified: the tabular world knows subclasses of PreferenceModule and "
        "PolicyModule. Reward losses are "
        "verified through their own table."
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

    return PreferenceCase(
        name,
        text,
        world,
        fresh_loss,
        _population(world, module.objective),
        best,
        training="follow",
        make_module=around,
    )


def _policy_case(name: str, module: PolicyModule, make_module: Callable[[], RLHFModule]) -> Case:
    group = min(module.num_samples, _GROUP)
    deep = tree()
    best, text = _optimum(deep, module.kl.value, module, getattr(module, "advantage", None))

    def fresh(*_: object) -> PolicyModule:
        made = cast("PolicyModule", make_module())
        made.num_samples = group
        return made

    return PolicyCase(name, text, deep, fresh, best, group=group)


def _population(world: TabularWorld, loss: o.PreferenceLoss) -> data.Population:
    if isinstance(loss, o.SoftLabelDPO):
        return data.soft_pairs(world)
    if isinstance(loss, o.PointwiseLoss):
        return (
            data.scalar_scores(world)
            if "score" in loss.columns
            else data.binary_labels(world, world.rewards.sigmoid())
        )
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
            f"{type(owners[0]).__name__} has no `beta`, so pi* is not defined. Give it a method "
            "tabular_optimum(world) that "
            "returns the probabilities it must end in."
        )
    return targets.tilted(world.reference, world.rewards / beta), f"pi* = ref exp(r/{beta:g})"
