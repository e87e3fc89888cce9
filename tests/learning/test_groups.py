"""Groups of one prompt and those of another."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lit_rlhf.types import EstimatedRollout
from lit_rlhf.verify import PolicyCase, all_cases
from tests.tolerances import FP64


@pytest.mark.parametrize("name", ["RLOO", "DrGRPO", "GRPO", "leave-one-out + k3"])
def test_advantages_of_a_group_are_those_of_its_own_samples(name: str) -> None:
    """A baseline of another prompt's samples is unbiased as well where all groups are of one prompt."""
    case = all_cases()[f"{name} (tree, G=2)"]
    assert isinstance(case, PolicyCase)
    alone = replace(case, by_group=True)
    (together,) = case.draw(case.module()).rollouts
    apart = [EstimatedRollout.of(each).advantages for each in alone.draw(alone.module()).rollouts]
    assert_close(EstimatedRollout.of(together).advantages, torch.cat(apart), **FP64)
