"""The adapted linear layer with a backward of its own against autograd's, and where it is used."""

import copy
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from lit_rlhf.models import LoraSpec
from lit_rlhf.models.kernels import lora
from lit_rlhf.models.kernels.lora import RoleLinear, adapted_linear
from tests.tolerances import BF16, FP32
from tests.unit.models.conftest import MakeBackbone, shake

SCALE = 1.5


def operands(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, W, b, A, B, and a gradient of the output."""
    random = torch.Generator().manual_seed(2)
    shapes = ((2, 5, 12), (7, 12), (7,), (3, 12), (7, 3), (2, 5, 7))
    found = [torch.randn(shape, generator=random) for shape in shapes]
    return [x if index in (3, 4) else x.to(dtype) for index, x in enumerate(found)]


def formula(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    return F.linear(x, weight, bias) + scale * F.linear(
        F.linear(x, down.to(x.dtype)), up.to(x.dtype)
    )


def run(function: Any, given: list[Tensor], wants: tuple[int, ...]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_(index in wants) for index, x in enumerate(given[:5])]
    out = function(*leaves, SCALE)
    grads = torch.autograd.grad(out, [leaves[index] for index in wants], given[5])
    for leaf, before in zip(leaves, given, strict=False):
        assert torch.equal(leaf, before)  # nothing in place on what it was given
    return [out.detach(), *grads]


@pytest.mark.parametrize(
    "wants", [(0, 3, 4), (3, 4), (0, 1, 2, 3, 4), (0,), (4,), (3,), (2,)], ids=str
)
def test_values_and_gradients_are_those_of_autograd(wants: tuple[int, ...]) -> None:
    given = operands()
    for mine, wanted in zip(
        run(adapted_linear, given, wants), run(formula, given, wants), strict=True
    ):
        assert_close(mine, wanted, **FP32)


def test_without_a_bias_and_for_a_single_vector() -> None:
    x, weight, _, down, up, grad = operands()
    x, grad = x[0, 0], grad[0, 0]
    leaves = [t.clone().requires_grad_() for t in (x, down, up)]
    twins = [t.clone().requires_grad_() for t in (x, down, up)]
    ours = adapted_linear(leaves[0], weight, None, *leaves[1:], SCALE)
    theirs = formula(twins[0], weight, None, *twins[1:], SCALE)
    assert_close(ours, theirs, **FP32)
    pairs = zip(
        torch.autograd.grad(ours, leaves, grad),
        torch.autograd.grad(theirs, twins, grad),
        strict=True,
    )
    for mine, wanted in pairs:
        assert_close(mine, wanted, **FP32)


def test_its_output_may_be_modified_in_place_and_may_be_empty() -> None:
    given = operands()
    for mine, wanted in zip(
        run(lambda *args: adapted_linear(*args).clamp_(-1, 1), given, (0, 3, 4)),
        run(lambda *args: formula(*args).clamp(-1, 1), given, (0, 3, 4)),
        strict=True,
    ):
        assert_close(mine, wanted, **FP32)
    x, weight, bias, down, up, _ = given
    assert adapted_linear(x[:0], weight, bias, down, up.requires_grad_(), SCALE).shape == (0, 5, 7)


def test_a_bfloat16_base_has_float32_gradients_of_its_adapter_near_the_exact_ones() -> None:
    given = operands(torch.bfloat16)
    ours = run(adapted_linear, given, (0, 3, 4))
    exact = run(formula, [x.float() for x in given], (0, 3, 4))
    assert [x.dtype for x in ours] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for mine, wanted in zip(ours, exact, strict=True):
        assert_close(mine.float() / wanted.abs().max(), wanted / wanted.abs().max(), **BF16)


class TestWhereItIsUsed:
    @pytest.fixture
    def layer(self, make: MakeBackbone) -> RoleLinear:
        """An adapted layer whose role is on."""
        backbone = make(lora=LoraSpec(rank=4, alpha=8.0, dropout=0.5))
        backbone.add_adapter("policy")
        shake(backbone, "policy")
        found = next(module for module in backbone.modules() if isinstance(module, RoleLinear))
        found._disable_adapters, found._active_adapter = False, ["policy"]
        return found.eval()

    def uses(self, layer: RoleLinear) -> bool:
        x = torch.randn(
            2, 3, layer.base_layer.in_features, generator=torch.Generator().manual_seed(0)
        )
        with patch.object(lora, "adapted_linear", wraps=adapted_linear) as spy:
            out = layer(x)
        down, up = layer.matrices("policy")
        if (
            not layer.training
            and out.dtype == torch.float32
            and not layer.base_layer._forward_hooks
        ):
            wanted = formula(
                x, layer.base_layer.weight, layer.base_layer.bias, down, up, layer.scaling["policy"]
            )
            assert_close(out, wanted, **FP32)
        return bool(spy.called)

    def test_in_training(self, layer: RoleLinear) -> None:
        assert self.uses(layer)

    def test_not_without_a_backward(self, layer: RoleLinear) -> None:
        with torch.no_grad():
            assert not self.uses(layer)

    def test_not_under_dropout(self, layer: RoleLinear) -> None:
        layer.train()
        assert not self.uses(layer)

    def test_not_under_autocast(self, layer: RoleLinear) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            assert not self.uses(layer)

    def test_not_where_the_base_is_hooked(self, layer: RoleLinear) -> None:
        layer.base_layer.register_forward_hook(lambda module, args, output: output + 1)
        assert not self.uses(layer)

    def test_not_where_a_backward_hook_waits(self, layer: RoleLinear) -> None:
        layer.base_layer.register_full_backward_hook(lambda module, grads, outputs: None)
        assert not self.uses(layer)

    def test_not_where_the_base_is_patched(self, layer: RoleLinear) -> None:
        layer.base_layer.forward = copy.copy(layer.base_layer.forward)
        assert not self.uses(layer)

    def test_not_where_the_base_is_another_class(self, layer: RoleLinear) -> None:
        class Other(nn.Linear):
            pass

        layer.base_layer.__class__ = Other
        assert not self.uses(layer)
