"""The RMSNorm here against transformers' own, forward and backward."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from lit_rlhf.models.kernels.norms import adopt_norm, rms_norm
from tests.tolerances import BF16, FP32

KINDS = [LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm]


def pair(
    kind: Any, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Transformers' norm, the same switched, an input, and a gradient of the output."""
    generator = torch.Generator().manual_seed(3)
    theirs = kind(48, eps=1e-2)
    theirs.weight.data += torch.randn(48, generator=generator)
    theirs.to(dtype)
    ours = copy.deepcopy(theirs)
    adopt_norm(ours)
    x, grad = (torch.randn(2, 5, 48, generator=generator).to(dtype) for _ in range(2))
    return theirs, ours, x, grad


def run(norm: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x = x.clone().requires_grad_()
    before = x.detach().clone()
    out = norm(x)
    out.backward(grad)
    assert torch.equal(x, before)  # nothing in place on the input
    weight_grad, norm.weight.grad = norm.weight.grad, None
    return out.detach(), x.grad, weight_grad  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_transformers(kind: type[nn.Module]) -> None:
    theirs, ours, x, grad = pair(kind)
    assert isinstance(ours, kind)
    assert type(ours) is not kind
    for mine, wanted in zip(run(ours, x, grad), run(theirs, x, grad), strict=True):
        assert_close(mine, wanted, **FP32)


def test_bfloat16_rounds_as_transformers_does_and_its_gradient_is_nearer_to_the_exact_one() -> None:
    theirs, ours, x, grad = pair(LlamaRMSNorm, torch.bfloat16)
    mine, wanted = run(ours, x, grad), run(theirs, x, grad)
    assert torch.equal(mine[0], wanted[0])
    exact = run(copy.deepcopy(theirs).float(), x.float(), grad.float())
    for index in (1, 2):
        assert_close(mine[index], wanted[index], **BF16)
    assert (mine[1] - exact[1]).norm() <= (wanted[1] - exact[1]).norm() * 1.1  # type: ignore[operator, union-attr]


def test_statistics_stay_in_float32_under_autocast() -> None:
    theirs, ours, x, grad = pair(LlamaRMSNorm)
    with torch.autocast("cpu", torch.bfloat16):
        mine, wanted = run(ours, x, grad), run(theirs, x, grad)
    for found, expected in zip(mine, wanted, strict=True):
        assert_close(found, expected, **FP32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_backward_it_gives_the_same_bits(dtype: torch.dtype) -> None:
    _, ours, x, grad = pair(LlamaRMSNorm, dtype)
    before = x.clone()
    with torch.no_grad():
        found = ours(x)
    assert torch.equal(x, before)
    assert torch.equal(found, run(ours, x, grad)[0])


def test_a_single_vector_is_normalised_too() -> None:
    theirs, ours, x, grad = pair(LlamaRMSNorm)
    for found, expected in zip(
        run(ours, x[0, 0], grad[0, 0]), run(theirs, x[0, 0], grad[0, 0]), strict=True
    ):
        assert_close(found, expected, **FP32)


def test_a_frozen_weight_gets_no_gradient_and_an_input_needs_none() -> None:
    _, ours, x, grad = pair(LlamaRMSNorm)
    ours.requires_grad_(False)
    assert run(ours, x, grad)[2] is None
    ours.requires_grad_(True)
    ours(x).backward(grad)
    assert ours.weight.grad is not None


def test_float64_inputs_keep_their_dtype() -> None:
    theirs, ours, x, grad = pair(LlamaRMSNorm, torch.float64)
    for mine, wanted in zip(run(ours, x, grad), run(theirs, x, grad), strict=True):
        assert mine is not None
        assert mine.dtype == torch.float64
        assert_close(mine, wanted, **FP32)  # both compute in float32


def test_less_than_half_is_kept_for_backward() -> None:
    theirs, ours, x, _ = pair(LlamaRMSNorm, torch.bfloat16)
    kept: dict[str, int] = {}
    for name, norm in (("theirs", theirs), ("ours", ours)):
        storages: dict[int, int] = {}

        def pack(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            norm(x.clone().requires_grad_())
        kept[name] = sum(storages.values())
    assert kept["ours"] < kept["theirs"] / 2


def test_other_norms_are_left_alone() -> None:
    norm = nn.LayerNorm(4)
    adopt_norm(norm)
    assert type(norm) is nn.LayerNorm


def test_eps_and_weight_count() -> None:
    x = torch.tensor([[3.0, 4.0]])
    expected = torch.tensor([[3.0, 8.0]]) / (12.5 + 0.5) ** 0.5
    assert_close(rms_norm(x, torch.tensor([1.0, 2.0]), 0.5), expected, **FP32)
