"""Online methods and policy gradients from samples: noise and minibatches in place of expectations."""

from typing import cast

import pytest
import torch

from lit_rlhf.modules import PolicyModule
from lit_rlhf.seeding import generator
from lit_rlhf.verify import PolicyCase, all_cases
from lit_rlhf.verify.tabular import total_variation
from tests.walks import walk

CASES = {name: case for name, case in all_cases().items() if isinstance(case, PolicyCase)}
SAMPLED = [
    "OnlineDPO",
    "XPO (alpha=0)",
    "NashMD (bandit)",
    "SPPO (bandit, a step)",
    "RLOO (tree, G=2)",
    "Distillation (tree, beta=0.5)",
    "BestOfN (tree, n=3)",
]
STEPS, ROLLOUT = 100, 128


def train(case: PolicyCase, seed: int) -> torch.Tensor:
    """The policy after some rollouts of sampled groups, one step of a falling size each."""
    module = cast("PolicyModule", case.module())
    width = len(case.world.completions)
    every = torch.cartesian_prod(*[torch.arange(width)] * case.group).view(-1, case.group)
    optimizer = torch.optim.Adam([case.table(module)], lr=0.2)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, STEPS)
    draws = generator(seed, "sampled training")
    for _ in range(STEPS):
        picked = torch.multinomial(
            case.chances(module, every), ROLLOUT, replacement=True, generator=draws
        )
        groups = [tuple(group) for group in every[picked].tolist()]
        with torch.no_grad():
            rollout = module.estimate(case.collect(module, groups))
        loss, mask = module.loss(rollout).loss, rollout.response_mask
        optimizer.zero_grad()
        (module.reduction.numerator(loss, mask) / module.reduction.denominator(mask)).backward()
        optimizer.step()
        decay.step()
    return case.world.policy(module.backbone)


@pytest.mark.parametrize("name", walk(SAMPLED, "OnlineDPO", "RLOO (tree, G=2)"))
def test_training_on_samples_comes_near_the_optimum(name: str) -> None:
    case = CASES[name]
    start = total_variation(case.world.reference, case.optimum)
    reached = total_variation(train(case, 0), case.optimum)
    assert start > 0.1
    assert reached < 0.02
