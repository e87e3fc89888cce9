"""Attention by whole products against one query at a time, values and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.models import LoraSpec
from lit_rlhf.models.kernels import attention, dense_attention
from lit_rlhf.models.kernels.dense_attention import dense_attention as attend, pays
from lit_rlhf.types import BranchedBatch
from tests.tolerances import BF16, FP32
from tests.unit.models.conftest import MakeBackbone, shake

SCALE = 0.4


def tensors(
    queries: int, keys: int, dtype: torch.dtype = torch.float32, groups: int = 2
) -> list[Tensor]:
    """Query of six heads, key, value (of a width of its own), and a gradient of the output."""
    random = torch.Generator().manual_seed(5)
    shapes = ((5, 6, queries, 8), (5, groups, keys, 8), (5, groups, keys, 4), (5, queries, 6, 4))
    return [torch.randn(shape, generator=random).to(dtype) for shape in shapes]


def one_by_one(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """The formula, a head and a query at a time; bias (B, Q, K)."""
    share = query.shape[1] // key.shape[1]
    rows = []
    for b in range(len(query)):
        for i in range(query.shape[2]):
            for h in range(query.shape[1]):
                scores = SCALE * (key[b, h // share] * query[b, h, i]).sum(-1)
                weights = (scores if bias is None else scores + bias[b, i]).exp()
                rows.append((weights / weights.sum()) @ value[b, h // share])
    return torch.stack(rows).view(len(query), query.shape[2], query.shape[1], -1)


def with_gradients(attention: Any, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    kept = [x.clone() for x in leaves]
    out = attention(*leaves)
    for leaf, before in zip(leaves, kept, strict=True):
        assert torch.equal(leaf, before)  # nothing in place on what it was given
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs[3].to(out.dtype))]


def kinds_of_mask(queries: int, keys: int) -> dict[str, tuple[Tensor | None, bool, Tensor | None]]:
    """What is passed as mask, whether causal, and the bias that it stands for."""
    lower = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    ragged = (lower & (torch.arange(keys) >= torch.tensor([0, 1, 2, 0, 3])[:, None, None])) | (
        torch.arange(keys) == keys - 1
    )
    bias = torch.zeros(ragged.shape).masked_fill(~ragged, -torch.inf)
    soft = torch.randn(1, queries, keys, generator=torch.Generator().manual_seed(1))
    causal = torch.zeros(5, queries, keys).masked_fill(~lower, -torch.inf)
    return {
        "none": (None, False, None),
        "causal": (None, True, causal),
        "bool": (ragged[:, None], False, bias),
        "of all rows": (lower[None, None], False, causal),
        "added": (soft[None], False, soft.expand(5, -1, -1)),
    }


@pytest.mark.parametrize(
    ("together", "block"), [(1, 1), (250, 4), (10_000, 64)], ids=["one", "some", "all"]
)
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "of all rows", "added"])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_equals_one_query_at_a_time(
    groups: int, mask: str, together: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_attention, "_SCORES", together)
    monkeypatch.setattr(dense_attention, "_QUERIES", block)
    queries, keys = (6, 6) if mask == "causal" else (4, 6)
    given, causal, bias = kinds_of_mask(queries, keys)[mask]
    inputs = tensors(queries, keys, groups=groups)
    ours = with_gradients(
        lambda q, k, v: attend(q, k, v, given, causal=causal, scale=SCALE), inputs
    )
    wanted = with_gradients(lambda q, k, v: one_by_one(q, k, v, bias), inputs)
    for mine, theirs in zip(ours, wanted, strict=True):
        assert_close(mine, theirs, **FP32)


def test_a_mask_says_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_attention, "_QUERIES", 4)
    soft, *_ = kinds_of_mask(6, 6)["added"]
    inputs = tensors(6, 6)
    both = [
        with_gradients(lambda q, k, v, c=c: attend(q, k, v, soft, causal=c, scale=SCALE), inputs)
        for c in (True, False)
    ]
    assert all(map(torch.equal, *both))


def test_bfloat16_is_near_the_exact_values_and_keeps_its_dtype() -> None:
    inputs = tensors(6, 6, torch.bfloat16)
    ours = with_gradients(lambda q, k, v: attend(q, k, v, None, causal=True, scale=SCALE), inputs)
    exact = with_gradients(
        lambda q, k, v: attend(q, k, v, None, causal=True, scale=SCALE), [x.float() for x in inputs]
    )
    for mine, wanted in zip(ours, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert_close(mine.float(), wanted, **BF16)


def test_gradients_are_summed_over_queries_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_attention, "_QUERIES", 2)
    inputs = tensors(200, 200, torch.bfloat16)
    inputs[0][:] = inputs[0].abs()
    inputs[3] = inputs[3].abs()  # gradients of keys and values become large sums
    inputs[2][:] = torch.linspace(-1, 1, 200).square()[:, None]
    _, _, *ours = with_gradients(
        lambda q, k, v: attend(q, k, v, None, causal=True, scale=SCALE), inputs
    )
    wide = [x.float() for x in inputs]
    _, _, *exact = with_gradients(
        lambda q, k, v: attend(q, k, v, None, causal=True, scale=SCALE), wide
    )
    for mine, wanted in zip(ours, exact, strict=True):
        assert (mine - wanted).norm() < BF16["rtol"] / 4 * wanted.norm()


def test_the_default_dtype_is_no_matter() -> None:
    inputs = tensors(6, 6, torch.bfloat16)
    wanted = attend(*inputs[:3], None, causal=True, scale=SCALE)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        assert torch.equal(attend(*inputs[:3], None, causal=True, scale=SCALE), wanted)
    finally:
        torch.set_default_dtype(before)


def test_a_constant_in_the_values_leaves_gradients_of_scores_alone() -> None:
    """It cancels in them, of which rounding leaves something: no more than bfloat16 can resolve of the constant."""
    inputs = tensors(6, 6, torch.bfloat16)
    inputs[2] += 8
    _, query, key, _ = with_gradients(
        lambda q, k, v: attend(q, k, v, None, causal=True, scale=SCALE), inputs
    )
    wide = [x.float() for x in inputs]
    exact = with_gradients(lambda q, k, v: attend(q, k, v, None, causal=True, scale=SCALE), wide)
    assert (query - exact[1]).abs().max() <= 8 * BF16["atol"]
    assert (key - exact[2]).abs().max() <= 8 * BF16["atol"]


def test_no_sequences_at_all() -> None:
    inputs = [x[:0] for x in tensors(4, 6)]
    out, *_ = with_gradients(
        lambda q, k, v: attend(q, k, v, None, causal=False, scale=SCALE), inputs
    )
    assert out.shape == (0, 4, 6, 4)


@pytest.mark.parametrize("causal", [True, False])
def test_any_layout_in_memory(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads behind positions, as layers give them, and an expanded gradient."""
    monkeypatch.setattr(dense_attention, "_QUERIES", 4)
    inputs = tensors(6, 6)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs[:3]]
    assert not any(x.is_contiguous() for x in turned)
    grad = torch.ones(1, 1, 1, 1).expand(5, 6, 6, 4)
    bias = kinds_of_mask(6, 6)["causal"][2] if causal else None
    ours = with_gradients(
        lambda q, k, v: attend(q, k, v, None, causal=causal, scale=SCALE), [*turned, grad]
    )
    wanted = with_gradients(lambda q, k, v: one_by_one(q, k, v, bias), [*inputs[:3], grad])
    for mine, theirs in zip(ours, wanted, strict=True):
        assert_close(mine, theirs, **FP32)


def test_scores_are_not_rounded_to_bfloat16() -> None:
    """Two keys whose scores differ by less than bfloat16 can tell apart at their size."""
    query = torch.tensor([[[[16.0, 1.0]]]], dtype=torch.bfloat16)
    key = torch.tensor([[[[16.0, 0.0], [16.0, 0.5]]]], dtype=torch.bfloat16)
    value = torch.tensor([[[[0.0], [1.0]]]], dtype=torch.bfloat16)
    out = attend(query, key, value, None, causal=False, scale=1.0)
    assert_close(out.float().item(), torch.tensor(0.5).sigmoid().item(), **BF16)


def test_a_query_that_attends_to_nothing_is_finite() -> None:
    inputs = tensors(2, 3)
    mask = torch.ones(5, 1, 2, 3, dtype=torch.bool)
    mask[2, :, 1] = False
    out, *grads = with_gradients(
        lambda q, k, v: attend(q, k, v, mask, causal=False, scale=SCALE), inputs
    )
    assert_close(out[2, 1], inputs[2][2].mean(1).repeat_interleave(3, 0), **FP32)
    assert all(bool(grad.isfinite().all()) for grad in grads)
    added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    again = with_gradients(
        lambda q, k, v: attend(q, k, v, added, causal=False, scale=SCALE), inputs
    )
    for mine, wanted in zip(again, (out, *grads), strict=True):
        assert torch.equal(mine, wanted)


def test_it_is_for_short_sequences_in_bfloat16() -> None:
    def pair(length: int, keys: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
        return torch.zeros(2, 6, length, 64, dtype=dtype), torch.zeros(2, 2, keys, 64, dtype=dtype)

    assert pays(*pair(32, 1024), causal=False)  # few queries
    assert pays(*pair(320, 320), causal=False)
    assert not pays(*pair(324, 324), causal=False)  # with the inputs, which are kept too
    assert pays(*pair(576, 576), causal=True)  # half of the scores
    assert not pays(*pair(584, 584), causal=True)
    assert not pays(*pair(128, 128, torch.float32), causal=True)
    assert not pays(pair(128, 128)[0], pair(128, 128)[1].float(), causal=True)
    assert not pays(*(x.to("meta") for x in pair(8, 8)), causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays(*pair(8, 8), causal=True)


def test_what_it_keeps_is_what_it_says() -> None:
    """Of three blocks of queries the last alone sees all keys."""
    query, key = (
        torch.zeros(2, heads, 150, 64, dtype=torch.bfloat16, requires_grad=True) for heads in (6, 2)
    )
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        attend(query, key, key, None, causal=True, scale=SCALE)
    scores = 2 * 6 * (64 * 64 + 64 * 128 + 22 * 150)
    assert sum(kept) == scores + query.numel() + 2 * key.numel()
    assert scores == sum(part.scores(query) for part in dense_attention._parts(query, 150, True))


def test_a_model_learns_the_same_with_it(
    make: MakeBackbone, batch: BranchedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make(dtype="bfloat16", lora=LoraSpec(rank=4, alpha=8.0), branching="shared")
    backbone.add_adapter("policy")
    shake(backbone, "policy")
    used: list[tuple[int, bool]] = []

    def gradient(*, dense: bool) -> Tensor:
        def choose(query: Tensor, key: Tensor, *, causal: bool) -> bool:
            used.append((query.shape[2], causal))
            return dense

        monkeypatch.setattr(attention, "pays", choose)
        backbone.zero_grad(set_to_none=True)
        out = backbone(batch, num_branches=2, logprobs=True)
        out.logprobs.sum().backward()
        return torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None])

    with_it, without = gradient(dense=True), gradient(dense=False)
    assert len(set(used)) == 2
    assert {causal for _, causal in used} == {True, False}  # prompts and branches
    assert (with_it - without).norm() < BF16["rtol"] * without.norm()
