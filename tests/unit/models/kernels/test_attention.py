"""Grouped attention gives what transformers' own functions give."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as eager_capped

from lit_rlhf.functional.branches import branch_attention_mask, branch_layout, branch_parts
from lit_rlhf.models.kernels import attention
from lit_rlhf.models.kernels.attention import NAME, apart, grouped_attention
from tests.tolerances import BF16, FP32
from tests.unit.models.conftest import MakeBackbone


@pytest.fixture(params=[True, False], ids=["whole products", "SDPA"])
def both_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the shape decides between two; these are small, so that one of them must be asked for."""
    if not request.param:
        monkeypatch.setattr(attention, "pays", lambda query, key, causal: False)


class Layer(nn.Module):
    is_causal = True
    num_key_value_groups = 3


def tensors(
    length: int, keys: int, dtype: torch.dtype = torch.float32, heads: int = 6, groups: int = 2
):
    random = torch.Generator().manual_seed(0)
    shapes = ((3, heads, length, 8), (3, groups, keys, 8), (3, groups, keys, 8))
    return [torch.randn(shape, generator=random).to(dtype).requires_grad_() for shape in shapes]


def masks(length: int, keys: int):
    lower = torch.ones(length, keys, dtype=torch.bool).tril(keys - length)
    ragged = torch.arange(keys) >= torch.tensor([0, 1, 2])[:, None]
    boolean = (lower & ragged[:, None])[:, None]
    boolean[..., -1:] = True
    return {
        "none": None,
        "bool": boolean,
        "additive": torch.zeros(boolean.shape).masked_fill(~boolean, -1e4),
    }


@pytest.mark.usefixtures("both_kernels")
@pytest.mark.parametrize("mask", ["none", "bool", "additive"])
@pytest.mark.parametrize(
    ("length", "keys"), [(7, 7), (1, 9), (3, 9)], ids=["training", "decode", "continued"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_sdpa_of_transformers(length: int, keys: int, mask: str, dtype: torch.dtype):
    inputs, twins = tensors(length, keys, dtype), tensors(length, keys, dtype)
    chosen = masks(length, keys)[mask]
    if chosen is not None and chosen.is_floating_point():
        chosen = chosen.to(dtype)
    ours, _ = grouped_attention(Layer(), *inputs, chosen, scaling=0.3)
    theirs, _ = sdpa_attention_forward(Layer(), *twins, chosen, scaling=0.3)
    tolerance = FP32 if dtype == torch.float32 else BF16
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, **tolerance)
    ours.float().square().sum().backward()
    theirs.float().square().sum().backward()
    for a, b in zip(inputs, twins, strict=True):
        torch.testing.assert_close(
            a.grad / b.grad.abs().max(), b.grad / b.grad.abs().max(), **tolerance
        )


@pytest.mark.parametrize("mask", ["none", "bool", "additive"])
def test_capped_scores_equal_gemmas_own(mask: str):
    inputs = tensors(5, 5)
    layer = Layer()
    ours, _ = grouped_attention(layer, *inputs, masks(5, 5)[mask], scaling=0.5, softcap=2.0)
    additive = masks(5, 5)["additive" if mask != "none" else "bool"]
    if mask == "none":
        lower = torch.ones(5, 5, dtype=torch.bool).tril()
        additive = torch.zeros(5, 5).masked_fill(~lower, -1e4)[None, None]
    theirs, _ = eager_capped(layer, *inputs, additive, scaling=0.5, softcap=2.0)
    torch.testing.assert_close(ours, theirs, **FP32)


@pytest.mark.usefixtures("both_kernels")
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompts_and_branches_apart_equal_the_mask(softcap: float | None, dtype: torch.dtype):
    ids = [
        [0, 0, 0, 1, 1, 2, 3, 3, 3],
        [0, 1, 2, 2, 2, 2, 3, -1, -1],
        [0, 0, 1, 1, 1, 3, -1, -1, -1],
    ]  # one branch is empty
    branch_ids = torch.tensor(ids)
    parts = branch_parts(branch_ids, branch_layout(branch_ids, 3))
    inputs, twins = tensors(9, 9, dtype), tensors(9, 9, dtype)
    mask = branch_attention_mask(branch_ids)
    with apart(parts):
        ours, _ = grouped_attention(Layer(), *inputs, mask, scaling=0.3, softcap=softcap)
    theirs, _ = grouped_attention(Layer(), *twins, mask, scaling=0.3, softcap=softcap)
    tolerance = FP32 if dtype == torch.float32 else BF16
    exists = branch_ids >= 0
    torch.testing.assert_close(ours[exists], theirs[exists], **tolerance)
    assert torch.isfinite(ours).all()
    ours[exists].float().square().sum().backward()
    theirs[exists].float().square().sum().backward()
    for a, b in zip(inputs, twins, strict=True):
        torch.testing.assert_close(
            a.grad / b.grad.abs().max(), b.grad / b.grad.abs().max(), **tolerance
        )


def test_rows_of_another_shape_are_not_divided():
    branch_ids = torch.tensor([[0, 1, 2]] * 3)
    parts = branch_parts(branch_ids, branch_layout(branch_ids, 2))
    inputs = tensors(1, 9)
    plain, _ = grouped_attention(Layer(), *inputs, None)
    with apart(parts):
        assert torch.equal(grouped_attention(Layer(), *inputs, None)[0], plain)


def test_without_groups(tiny_model_dir: Path):
    inputs = tensors(4, 4, heads=2)
    layer = Layer()
    layer.num_key_value_groups = 1
    torch.testing.assert_close(
        grouped_attention(layer, *inputs, None)[0],
        sdpa_attention_forward(layer, *inputs, None)[0],
        **FP32,
    )


@pytest.mark.usefixtures("both_kernels")
def test_training_and_inference_give_the_same_bits_in_bfloat16():
    inputs = tensors(6, 6, torch.bfloat16)
    training, _ = grouped_attention(Layer(), *inputs, None)
    with torch.no_grad():
        assert torch.equal(grouped_attention(Layer(), *inputs, None)[0], training)


def test_dropout_of_probabilities_is_left_to_sdpa(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        attention, "dense_attention", lambda *args, **kwargs: pytest.fail("no dropout there")
    )
    grouped_attention(Layer(), *tensors(6, 6, torch.bfloat16), None, dropout=0.5)


def test_models_use_it(make: MakeBackbone):
    assert make().model.config._attn_implementation == NAME
    assert make(attention="eager").model.config._attn_implementation == "eager"
