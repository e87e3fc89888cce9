"""A method's exact expected gradient at its claimed optimum, and where training from the start ends."""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lit_rlhf.modules import RLHFModule
from lit_rlhf.verify import targets
from lit_rlhf.verify.tabular import TabularWorld, total_variation

BETA = 0.5
PI_STAR = "pi* = ref exp(r/beta)"
GRADIENT_TOLERANCE = 1e-6
DISTANCE_TOLERANCE = 1e-3

Training = Literal["minimize", "follow", "descend", "either"]
"""How a case is trained: "minimize" where the gradient is that of the loss; "follow" where parts of the loss carry
none, or the data move with the policy; "descend" where it has corners, or more than one valley; "either" follows, and
descends anew if that ran astray."""


@dataclass(frozen=True)
class VerifyRow:
    """How a method fares.

    Attributes:
        method: The class and what it was given.
        target: What it must reach.
        gradient_norm: Norm of the expected gradient at the target, by logits (of a reward model: by scores).
        distance: Total variation between the target and what training from the reference reached; of reward models the
            largest difference of centered scores. Of off-policy rows neither: see `OffPolicyCase`.
        ok: Both are within tolerance.
        seconds: Wall time.
    """

    method: str
    target: str
    gradient_norm: float
    distance: float
    ok: bool
    seconds: float


def optimum(world: TabularWorld) -> Tensor:
    r"""$\pi^*$ of the world's rewards at `BETA`."""
    return targets.tilted(world.reference, world.rewards / BETA)


class Case(ABC):
    """A method in the tabular world, and what it must end in.

    Attributes:
        method: Name of the row.
        target: The optimum in words.
        world: The completions.
        optimum: (Y,).
        training: See `Training`.
        rate: First step size of "descend".
        kink: The optimum is a corner of the loss: its one-sided gradients must bracket 0.
        settles: What is learned beside the policy is fitted before the gradient is taken.
    """

    method: str
    target: str
    world: TabularWorld
    optimum: Tensor
    training: Training = "minimize"
    rate: float = 0.3
    kink: bool = False
    settles: bool = True

    def measure(self) -> tuple[float, float]:
        """Norm of the gradient at the optimum, and how far from it training ends."""
        return gradient_norm(self, self.optimum), self.distance(train(self))

    @abstractmethod
    def module(self) -> RLHFModule:
        """A fresh module whose policy and reference are the world's reference."""

    @abstractmethod
    def expected_loss(self, module: RLHFModule) -> Tensor:
        """A scalar whose gradient is that of the module's loss in expectation over all the data there could be."""

    def write(self, module: RLHFModule, values: Tensor) -> None:
        """Make (Y,) the module's policy."""
        self.world.set_policy(module.backbone, values)

    def nudge(self, values: Tensor, size: float) -> Tensor:
        """A policy over two completions, a little to one side of the corner."""
        return (values.log() + values.new_tensor([size, -size])).softmax(-1)

    def read(self, module: RLHFModule) -> Tensor:
        """The module's policy, (Y,)."""
        return self.world.policy(module.backbone)

    def table(self, module: RLHFModule) -> nn.Parameter:
        """The parameters that are the policy."""
        weight: nn.Parameter = module.backbone.model.lm_head.weight
        return weight

    def distance(self, reached: Tensor) -> float:
        """How far training ended from the optimum."""
        return total_variation(reached, self.optimum)


def expected_gradient(case: Case, values: Tensor) -> Tensor:
    """Gradient of the expected loss by the logits of all states, at a policy, with learned shifts and values fitted."""
    module = case.module()
    case.write(module, values)
    others = [p for p in module.parameters() if p.requires_grad and p is not case.table(module)]
    if others and case.settles:
        _minimize(module, case, others)
    (gradient,) = torch.autograd.grad(case.expected_loss(module), case.table(module))
    return gradient


def gradient_norm(case: Case, values: Tensor) -> float:
    """Norm of the expected gradient; at a corner, that of the shortest vector between the one-sided ones."""
    if not case.kink:
        return float(expected_gradient(case, values).norm())
    sides = [expected_gradient(case, case.nudge(values, sign * 1e-9)).flatten() for sign in (1, -1)]
    step = sides[1] - sides[0]
    along = (-(sides[0] @ step) / (step @ step).clamp_min(1e-300)).clamp(0, 1)
    return float((sides[0] + along * step).norm())


def train(case: Case) -> Tensor:
    """Train from the reference on the expected loss; what it ends in, (Y,)."""
    if case.training != "descend":
        module = case.module()
        _minimize(module, case, _trained(module), search=case.training == "minimize")
        reached = case.read(module)
        if case.training != "either" or case.distance(reached) < DISTANCE_TOLERANCE:
            return reached
    module = case.module()
    _descend(module, case, _trained(module))
    return case.read(module)


def verify_case(case: Case) -> VerifyRow:
    """Gradient at the target, and distance after training from the reference."""
    start = time.perf_counter()
    norm, distance = case.measure()
    ok = norm < GRADIENT_TOLERANCE and distance < DISTANCE_TOLERANCE
    return VerifyRow(case.method, case.target, norm, distance, ok, time.perf_counter() - start)


def _trained(module: RLHFModule) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _minimize(
    module: RLHFModule, case: Case, parameters: list[nn.Parameter], search: bool = True
) -> None:
    """Quasi-Newton steps; without a line search they follow the gradient even where it isn't the loss's."""
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=300 if search else 60,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe" if search else None,
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = case.expected_loss(module)
        loss.backward()
        return loss.item()

    optimizer.step(closure)


def _descend(
    module: RLHFModule, case: Case, parameters: list[nn.Parameter], steps: int = 150
) -> None:
    """Small steps, and ever smaller ones: for corners, and not to jump over a ridge."""
    optimizer = torch.optim.Adam(parameters, lr=case.rate, betas=(0.8, 0.95))
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, (1e-4 / case.rate) ** (1 / steps))
    for _ in range(steps):
        optimizer.zero_grad()
        case.expected_loss(module).backward()
        optimizer.step()
        decay.step()
