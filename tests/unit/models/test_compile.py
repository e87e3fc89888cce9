"""Decoder layers compiled by torch.compile give what they give as they are, under each role, in both passes."""

import pytest
import torch

from lit_rlhf.models import Backbone
from lit_rlhf.types import BranchedBatch
from tests.tolerances import FP32_MODEL
from tests.unit.models.conftest import LORA, MakeBackbone, gradients, shake

pytestmark = pytest.mark.slow


def made(make: MakeBackbone, branching: str) -> Backbone:
    backbone = make(lora=LORA, branching=branching)
    backbone.add_adapter("policy")
    shake(backbone, "policy")
    backbone.add_head("value", drawn=True)
    return backbone


def outputs(backbone: Backbone, batch: BranchedBatch) -> list[torch.Tensor]:
    policy = backbone(batch, num_branches=2, logprobs=True, values="value")
    with torch.no_grad():
        reference = backbone(batch, num_branches=2, role="reference", logprobs=True)
    (policy.logprobs.square().sum() + policy.values.square().sum()).backward()
    return [policy.logprobs, policy.values, reference.logprobs, *gradients(backbone).values()]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("branching", ["shared", "expanded"])
def test_compiled_layers_equal_eager_ones(
    make: MakeBackbone, batch: BranchedBatch, branching: str
) -> None:
    eager = made(make, branching)
    wanted = outputs(eager, batch)
    compiled = made(make, branching)
    for layer in compiled.decoder.layers:  # type: ignore[union-attr]
        layer.compile(dynamic=True)  # type: ignore[operator]
    for ours, theirs in zip(outputs(compiled, batch), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **FP32_MODEL)
