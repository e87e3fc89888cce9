"""Distillation in the tabular world: the student must become the teacher, whatever the divergence."""

from dataclasses import dataclass
from functools import partial
from typing import cast

from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.modules import (
    DistillationPolicyModule,
    REINFORCEPolicyModule,
    RLHFModule,
    Teacher,
)
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import Sampling
from lit_rlhf.verify import targets
from lit_rlhf.verify.policy import PolicyCase
from lit_rlhf.verify.runner import BETA
from lit_rlhf.verify.tabular import TabularWorld, bandit, tree

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
    cases = [
        PolicyCase(
            f"Distillation ({where}, beta={beta:g})",
            "the teacher",
            world,
            partial(_distilled, world, beta, 1.0),
            teacher_of(world),
            group=1,
            training="either",  # quasi-Newton steps run astray with some
        )
        for where, world in (("tree", tree()), ("bandit", bandit()))
        for beta in _BETAS
    ]
    deep = tree()
    held = targets.tilted(teacher_of(deep), deep.rewards / BETA)

    def by_gradient(spec: ModelSpec, reward: Reward) -> REINFORCEPolicyModule:
        teacher, kl = TabularTeacher(deep, teacher_of(deep)), o.FixedKL(BETA)
        return REINFORCEPolicyModule(spec, reward, reference=teacher, kl=kl, sampling=_SHORT)

    return [
        *cases,
        GivenCase(
            "Distillation (given answers too)",
            "the teacher",
            deep,
            partial(_distilled, deep, 0.5, _LMBDA),
            teacher_of(deep),
            group=1,
            training="either",
        ),
        PolicyCase(
            "REINFORCE (held to a teacher)",
            "teacher exp(r/beta)",
            deep,
            by_gradient,
            held,
            group=1,
        ),
    ]


def _distilled(
    world: TabularWorld, beta: float, lmbda: float, spec: ModelSpec, reward: Reward
) -> DistillationPolicyModule:
    teacher, jsd = TabularTeacher(world, teacher_of(world)), o.GeneralizedJSD(beta)
    return DistillationPolicyModule(
        spec, reward, teacher=teacher, divergence=jsd, lmbda=lmbda, sampling=_SHORT
    )
