"""A method's exact expected gradient at its claimed optimum, and where training from the reference ends."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import PreferenceModule
from lit_rlhf.objectives import PreferenceLoss
from lit_rlhf.testing.populations import Population
from lit_rlhf.testing.tabular import TabularWorld, total_variation

BETA = 0.5
GRADIENT_TOLERANCE = 1e-6
DISTANCE_TOLERANCE = 1e-3

MakeLoss = Callable[[], PreferenceLoss]
Training = Literal["minimize", "follow", "descend"]


@dataclass(frozen=True)
class VerifyRow:
    """How a method fares.

    Attributes:
        method: The class and what it was given.
        target: What it must reach.
        gradient_norm: Norm of the expected gradient at the target, by logits.
        distance: Total variation between the target and what training from the reference reached.
        ok: Both are within tolerance.
        seconds: Wall time.
    """

    method: str
    target: str
    gradient_norm: float
    distance: float
    ok: bool
    seconds: float


@dataclass(frozen=True)
class Case:
    """A loss, all the data there could be, and the policy it must end in.

    Attributes:
        method: Name of the row.
        target: The optimum in words.
        world: The completions.
        make_loss: A fresh loss.
        population: Its data, weighted by probability.
        optimum: (Y,).
        training: "minimize" where the loss is what its gradient says; "follow" where parts of it carry no gradient or
            are not smooth; "descend" for small steps, where there is more than one valley.
        kink: The optimum is a corner of the loss: its one-sided gradients must bracket 0.
        by_row: Evaluate each row as a batch of its own, for losses that sort the batch.
    """

    method: str
    target: str
    world: TabularWorld
    make_loss: MakeLoss
    population: Population
    optimum: Tensor
    training: Training = "minimize"
    kink: bool = False
    by_row: bool = False

    def module(self) -> PreferenceModule:
        """A module around the loss whose policy and reference are the world's reference."""
        return tabular_module(PreferenceModule(ModelSpec(config={}), self.make_loss()), self.world)


def tabular_module(module: PreferenceModule, world: TabularWorld) -> PreferenceModule:
    """Give a module that has no backbone yet a tabular one, and its roles."""
    module.backbone = world.backbone()
    module.configure_roles()
    return module.train()


def expected_loss(module: PreferenceModule, population: Population, by_row: bool = False) -> Tensor:
    """The module's own loss of all data at once, or the mean of its losses of each datum."""
    if not by_row:
        return module.reduce(module.loss_output(population).loss, population)  # type: ignore[arg-type]
    total = torch.zeros((), dtype=torch.float64)
    for row, weight in enumerate(population["weight"]):
        alone = {name: value[row : row + 1] for name, value in population.items() if name != "weight"}
        total = total + weight * module.reduce(module.loss_output(alone).loss, alone)  # type: ignore[arg-type]
    return total


def expected_gradient(case: Case, policy: Tensor) -> Tensor:
    """Gradient of the expected loss by the logits of all states, at a policy, with learned shifts and values fitted."""
    module = case.module()
    case.world.set_policy(module.backbone, policy)
    settle(module, case)
    module.zero_grad()
    expected_loss(module, case.population, case.by_row).backward()
    gradient = module.backbone.model.lm_head.weight.grad
    assert isinstance(gradient, Tensor)
    return gradient.detach().clone()


def settle(module: PreferenceModule, case: Case) -> None:
    """Fit what is learned beside the policy (a shift, a value) to the policy as it is."""
    others = [p for name, p in module.named_parameters() if p.requires_grad and "lm_head" not in name]
    if others:
        _minimize(module, case, others)


def gradient_norm(case: Case, policy: Tensor) -> float:
    """Norm of the expected gradient; at a corner, that of the shortest vector between the one-sided ones."""
    if not case.kink:
        return float(expected_gradient(case, policy).norm())
    nudge = 1e-9 * torch.tensor([1.0, -1.0], dtype=torch.float64)
    sides = [expected_gradient(case, (policy.log() + sign * nudge).softmax(-1)).flatten() for sign in (1, -1)]
    step = sides[1] - sides[0]
    along = (-(sides[0] @ step) / (step @ step).clamp_min(1e-300)).clamp(0, 1)
    return float((sides[0] + along * step).norm())


def train(case: Case) -> Tensor:
    """Train from the reference on the expected loss; the policy (Y,) it ends in."""
    module = case.module()
    parameters = [p for p in module.parameters() if p.requires_grad]
    if case.training == "minimize":
        _minimize(module, case, parameters)
    elif case.training == "follow":
        _follow(module, case, parameters, rate=0.3, final=1e-5, steps=250)
    else:
        _follow(module, case, parameters, rate=0.03, final=1e-5, steps=250)
    return case.world.policy(module.backbone)


def verify_case(case: Case) -> VerifyRow:
    """Gradient at the target, and distance after training from the reference."""
    start = time.perf_counter()
    norm = gradient_norm(case, case.optimum)
    distance = total_variation(train(case), case.optimum)
    ok = norm < GRADIENT_TOLERANCE and distance < DISTANCE_TOLERANCE
    return VerifyRow(case.method, case.target, norm, distance, ok, time.perf_counter() - start)


def _minimize(module: PreferenceModule, case: Case, parameters: list[torch.nn.Parameter]) -> None:
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=300,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = expected_loss(module, case.population, case.by_row)
        loss.backward()
        return loss.item()

    optimizer.step(closure)


def _follow(
    module: PreferenceModule, case: Case, parameters: list[torch.nn.Parameter], rate: float, final: float, steps: int
) -> None:
    optimizer = torch.optim.Adam(parameters, lr=rate, betas=(0.8, 0.95))
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, (final / rate) ** (1 / steps))
    for _ in range(steps):
        for buffer in module.loss.buffers():
            buffer.zero_()  # with all data in every batch, what running statistics tend to is the batch's own
        optimizer.zero_grad()
        expected_loss(module, case.population, case.by_row).backward()
        optimizer.step()
        decay.step()
