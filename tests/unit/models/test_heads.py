"""Scalar heads in float32 whatever is around them."""

import pytest
import torch

from lit_rlhf.models import ScalarHead
from lit_rlhf.types import BranchedBatch
from tests.unit.models.conftest import MakeBackbone


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_nothing(dtype: torch.dtype) -> None:
    head = ScalarHead(64, 0.3, seed=1)
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    exact = head(hidden)
    (wanted,) = torch.autograd.grad(exact.sum(), hidden)
    with torch.autocast("cpu", dtype):
        found = head(hidden)
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)
    assert torch.equal(torch.autograd.grad(found.sum(), hidden)[0], wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_values_and_logprobs_are_float32_under_autocast(
    make: MakeBackbone, batch: BranchedBatch, dtype: torch.dtype
) -> None:
    backbone = make()
    backbone.add_head("reward")
    backbone.add_head("value", drawn=True)
    with torch.autocast("cpu", dtype):
        out = backbone(
            batch, num_branches=2, logprobs=True, entropy=True, values="value", scores="reward"
        )
    for found in (out.logprobs, out.entropy, out.values, out.scores):
        assert found.dtype == torch.float32
        assert (found != found.to(dtype).float()).any()  # not rounded on the way
