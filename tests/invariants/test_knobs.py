"""No option does nothing: every number and switch of every policy module and objective changes a result or is refused.

Constructors are introspected, so that an option added tomorrow fails here until it has an entry in `OTHER`.
"""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_rlhf import modules, objectives as o
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.modules import PolicyModule, Updates
from lit_rlhf.rollout import Sampling
from tests.public import public_names
from tests.tolerances import FP32
from tests.unit.modules.one_iteration import (
    SlightlyOffEngine,
    TokenReward,
    build,
    full_batch,
    iterate,
    make_policy,
    parameters_of,
    template_of,
)
from tests.walks import walk

OTHER: Mapping[str, object] = {
    "alpha": 0.7,
    "beta": 0.2,
    "center": False,
    "coef": 0.7,
    "cap": 0.9,
    "decay": 0.3,
    "dual": 1.05,
    "entropy_coef": 0.3,
    "eps": 0.5,
    "eta": 0.3,
    "gamma": 0.5,
    "high": 1.11,
    "horizon": 7,
    "init": 0.3,
    "lam": 0.2,
    "length": 9,
    "lmbda": 0.4,
    "low": 0.11,
    "mask_truncated": True,
    "missing_eos_penalty": 0.5,
    "n": 3,
    "num_anchors": 5,
    "num_samples": 6,
    "overlong_buffer": 4,
    "overlong_penalty": 0.5,
    "oversampling": 2,
    "ptx_coef": 1.0,
    "recompute_logprobs": True,
    "seed": 1,
    "target": 1.3,
    "temperature": 2.0,
    "terminal_kl": True,
    "weight": 0.4,
    "updates.decay_embeddings": False,
    "updates.epochs": 3,
    "updates.max_grad_norm": 0.01,
    "updates.max_skipped": 1,
    "updates.microbatch_tokens": 1,
    "updates.minibatches": 2,
    "updates.target_kl": 1e-9,
    "gae.gamma": 0.5,
    "gae.lam": 0.2,
    "gae.whiten": False,
    "value_loss.clip": 1e-4,
    "value_loss.coef": 0.9,
    "value_loss.lr": 0.3,
    "value_loss.warmup": 1,
}
"""A value of each option that is not its default."""

SAME = {"updates.microbatch_tokens", "updates.max_skipped", "updates.decay_embeddings"}
"""Options that bound memory, or count elsewhere: odd gradients and weight decay have tests of their own."""

LOGGED = {"recompute_logprobs"}
"""Options that may change what is logged alone: how far the policy drifts, where the loss doesn't look at it."""

SAMPLING = Sampling(max_new_tokens=4, stop_token_ids=list(range(100)))
"""Some completions end before the limit."""

POLICIES = {
    name: kind
    for name in public_names("lit_rlhf.modules")
    if isinstance(kind := getattr(modules, name), type)
    and issubclass(kind, PolicyModule)
    and kind is not PolicyModule
}


GROUPS: dict[str, Any] = {"updates": Updates, "gae": modules.GAE, "value_loss": modules.ValueLoss}
"""Options that are groups of numbers."""


def _changed(knob: str) -> dict[str, Any]:
    """The option with another value; of a group, one number of it."""
    group, _, name = knob.partition(".")
    if not name:
        return {knob: OTHER[knob]}
    others = {"epochs": 2} if group == "updates" else {}
    return {group: GROUPS[group](**(others | {name: OTHER[knob]}))}


def is_knob(annotation: object) -> bool:
    """Whether an option is a number or a switch, perhaps None or a word in its place."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = set(typing.get_args(annotation)) if union else {annotation}
    kinds = {kind for kind in kinds if typing.get_origin(kind) is not typing.Literal}
    if not kinds:
        return False
    return kinds - {type(None)} <= {int, float, bool} and kinds != {type(None)}


def knobs(kind: type) -> list[str]:
    """Options of a class, and of those it hands further options on to."""
    found: dict[str, None] = {}
    for each in kind.__mro__:
        if "__init__" not in vars(each) or each is object:
            continue
        parameters = inspect.signature(each.__init__).parameters.values()
        for p in parameters:
            if is_knob(p.annotation):
                found[p.name] = None
            elif p.name in GROUPS:
                found |= {f"{p.name}.{field.name}": None for field in fields(GROUPS[p.name])}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(found)


@pytest.fixture(scope="module")
def template(tiny_model_dir: Path) -> Backbone:
    """Loaded once for all modules."""
    return template_of(_spec(tiny_model_dir), SlightlyOffEngine())


def _spec(model_dir: Path) -> ModelSpec:
    return ModelSpec(name=str(model_dir))


def _result(
    kind: type[PolicyModule], model_dir: Path, template: Backbone, **options: Any
) -> tuple[Tensor, dict[str, float]]:
    given: dict[str, Any] = {
        "kl": o.FixedKL(0.1),
        "sampling": SAMPLING,
        "updates": Updates(epochs=2),
    } | options
    if issubclass(kind, modules.PPOPtxPolicyModule):
        given = {"ptx_coef": 0.3} | given  # else the text is all that counts
    spec, parts = _spec(model_dir), {"engine": SlightlyOffEngine()}
    try:
        module = make_policy(kind, spec, TokenReward(), **parts, **given)
    except ConfigurationError as error:
        if "one optimizer step" not in str(error):
            raise
        updates = given["updates"]
        given["updates"] = replace(updates, epochs=1) if updates.epochs == 2 else updates
        module = make_policy(kind, spec, TokenReward(), **parts, **given)
    built = build(module, template, moved=0.02)
    logged = iterate(built, full_batch(model_dir))
    return parameters_of(built), logged


@pytest.mark.parametrize("name", walk(POLICIES, "PPOPolicyModule", "GRPOPolicyModule"))
def test_every_option_of_a_policy_module_counts(
    name: str, tiny_model_dir: Path, template: Backbone
) -> None:
    kind = POLICIES[name]
    plain, logged = _result(kind, tiny_model_dir, template)
    assert torch.isfinite(plain).all()
    silent = []
    for knob in knobs(kind):
        try:
            changed, other = _result(kind, tiny_model_dir, template, **_changed(knob))
        except ConfigurationError as error:
            if knob.rpartition(".")[-1] not in str(error):
                raise
            continue
        if knob in SAME:
            torch.testing.assert_close(changed, plain, **FP32)
        elif (
            changed.shape == plain.shape
            and torch.equal(changed, plain)
            and (knob not in LOGGED or other == logged)
        ):
            silent.append(knob)
    assert not silent, f"{name} takes {silent} and does nothing with them"


# -- objectives --------------------------------------------------------------------------------------------------------

MASK = torch.tensor(
    [[True, True, True], [True, True, False], [True, True, True], [True, False, False]]
)
NEW = torch.where(MASK, torch.linspace(-3, -0.1, 12).view(4, 3), 0.0)
OLD = torch.where(MASK, torch.linspace(-0.4, -2.4, 12).view(4, 3), 0.0)
REWARDS = torch.where(MASK, torch.linspace(1, -1, 12).view(4, 3).sin(), 0.0)


def _surrogate(part: Any) -> Tensor:
    found: Tensor = torch.cat(
        [part(NEW * scale, OLD, REWARDS, MASK).loss for scale in (0.2, 0.6, 1.0, 3.0)]
    )
    return found


def _advantage(part: Any) -> Tensor:
    # Those with a memory show it after the second rollout.
    return torch.cat([part(REWARDS + shift * MASK, MASK, 2) for shift in (0.0, 1.0, 1.0)])


def _controller(part: Any) -> Tensor:
    part.update(1.1, 5)
    part.update(30.0, 2)
    return torch.tensor(part.value)


KINDS: dict[type, Callable[[Any], Tensor]] = {
    o.Surrogate: _surrogate,
    o.Advantage: _advantage,
    o.KLLoss: lambda part: part(NEW, OLD, REWARDS, MASK),
    o.Reduction: lambda part: part.numerator(NEW, MASK) / part.denominator(MASK),
    o.ImportanceCorrection: lambda part: part(NEW, OLD, MASK),
    o.KLController: _controller,
    o.Divergence: lambda part: part(NEW, OLD),
    o.PreferenceOracle: lambda part: part(torch.linspace(-2, 2, 9), torch.full((9,), 0.6)),
}
"""What an objective of each kind computes."""
NEEDED: Mapping[str, Mapping[str, Any]] = {
    "Whitened": {"advantage": o.RewardToGo()},
    "ConstantLength": {"length": 5},
    "AdaptiveKL": {"horizon": 100},
}
"""Options without which a class can't be made, or others hardly show."""
OBJECTIVES = {
    name: (kind, compute)
    for name in public_names("lit_rlhf.objectives")
    for base, compute in KINDS.items()
    if isinstance(kind := getattr(o, name), type)
    and issubclass(kind, base)
    and not inspect.isabstract(kind)
}


@pytest.mark.parametrize("name", [name for name, (kind, _) in OBJECTIVES.items() if knobs(kind)])
def test_every_option_of_an_objective_counts(name: str) -> None:
    kind, compute = OBJECTIVES[name]
    needed = NEEDED.get(name, {})
    plain = compute(kind(**needed))
    for knob in knobs(kind):
        changed = compute(kind(**{**needed, knob: OTHER[knob]}))
        assert not torch.equal(changed, plain), f"{name} does nothing with {knob}"


def test_the_walk_finds_what_it_should() -> None:
    assert len(POLICIES) >= 12
    assert {
        "updates.epochs",
        "updates.microbatch_tokens",
        "value_loss.clip",
        "seed",
        "gae.whiten",
    } <= set(knobs(modules.PPOPolicyModule))
    assert {"oversampling", "num_samples", "seed"} <= set(knobs(modules.DAPOPolicyModule))
    assert "advantage" not in knobs(modules.GRPOPolicyModule)

    class Idle(modules.GRPOPolicyModule):
        def __init__(self, *args: Any, eta: float = 1.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    assert knobs(Idle)[0] == "eta"


def test_an_idle_option_is_found(
    tiny_model_dir: Path, template: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Idle(modules.RLOOPolicyModule):
        def __init__(self, *args: Any, eta: float = 1.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    monkeypatch.setitem(POLICIES, "Idle", Idle)
    with pytest.raises(AssertionError, match=r"Idle takes \['eta'\] and does nothing"):
        test_every_option_of_a_policy_module_counts("Idle", tiny_model_dir, template)
