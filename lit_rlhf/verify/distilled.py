"""Distillation in the tabular world: the student must become the teacher, whatever the divergence."""

from functools import partial
from typing import Any

from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.modules import DistillationPolicyModule, REINFORCEPolicyModule, Teacher
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import Sampling
from lit_rlhf.verify import targets
from lit_rlhf.verify.policy import PolicyCase
from lit_rlhf.verify.runner import BETA
from lit_rlhf.verify.tabular import TabularWorld, bandit, tree

_BETAS = (0.0, 0.3, 0.5, 1.0)
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
            partial(_distilled, world, beta),
            teacher_of(world),
            group=1,
            training="either",  # quasi-Newton steps run astray with some
        )
        for where, world in (("tree", tree()), ("bandit", bandit()))
        for beta in _BETAS
    ]
    deep = tree()
    held = targets.tilted(teacher_of(deep), deep.rewards / BETA)
    by_gradient = partial(_by_policy_gradient, deep)
    return [
        *cases,
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
    world: TabularWorld, beta: float, spec: ModelSpec, reward: Reward
) -> DistillationPolicyModule:
    teacher = TabularTeacher(world, teacher_of(world))
    return DistillationPolicyModule(
        spec, reward, teacher=teacher, divergence=o.GeneralizedJSD(beta), sampling=_SHORT
    )


def _by_policy_gradient(world: TabularWorld, spec: ModelSpec, reward: Reward) -> Any:
    teacher = TabularTeacher(world, teacher_of(world))
    return REINFORCEPolicyModule(
        spec, reward, reference=teacher, kl=o.FixedKL(BETA), sampling=_SHORT
    )
