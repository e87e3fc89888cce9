"""Branched attention by flash kernels: what torch's kernels for CPU give of each sequence stands for those of a GPU."""

import logging
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from lit_rlhf.estimate.device import acting
from lit_rlhf.functional.branches import branch_attention_mask, branch_layout, branch_segments
from lit_rlhf.models.branched import BranchRunner
from lit_rlhf.models.kernels import attention as ours
from lit_rlhf.models.kernels.attention import apart, grouped_attention
from lit_rlhf.types import BranchedBatch
from tests.tolerances import FP32, FP32_MODEL
from tests.unit.models.conftest import MakeBackbone
from tests.unit.models.kernels.test_attention import Layer, tensors
from tests.unit.models.test_branched import evaluate, gradients, with_heads

IDS = [
    [0, 0, 0, 1, 1, 2, 3, 3, 3],
    [0, 1, 2, 2, 2, 2, 3, -1, -1],
    [0, 0, 1, 1, 1, 3, -1, -1, -1],  # one branch is empty
    [0, 0, 0, 0, -1, -1, -1, -1, -1],  # all are
]
CPU = torch.ops.aten


def pieces(starts: Tensor) -> list[slice]:
    return [slice(int(a), int(b)) for a, b in pairwise(starts)]


def laid(x: Tensor, heads: int) -> Tensor:  # (t, groups, d) to (1, heads, t, d)
    return x.repeat_interleave(heads // x.shape[1], 1).transpose(0, 1)[None]


def attend(query, key, value, query_from, key_from, longest_query, longest_key, causal, scale):
    out = torch.zeros_like(query)
    normalizer = query.new_full(query.shape[1::-1], torch.inf)
    lengths = (int(query_from.diff().max()), int(key_from.diff().max()))
    assert (longest_query, longest_key) == lengths
    assert {query_from.dtype, key_from.dtype} == {torch.int32}
    for q, k in zip(pieces(query_from), pieces(key_from), strict=True):
        if q.start == q.stop or k.start == k.stop:
            continue
        sequence = [laid(x, query.shape[1]) for x in (query[q], key[k], value[k])]
        found = CPU._scaled_dot_product_flash_attention_for_cpu(*sequence, 0.0, causal, scale=scale)
        out[q], normalizer[:, q] = found[0][0].transpose(0, 1), found[1].view(query.shape[1], -1)
    return out, normalizer, torch.zeros(2), torch.zeros(0)


def attend_backward(
    grad, query, key, value, out, normalizer, query_from, key_from, _, __, causal, scale, *state
):
    assert len(state) == 2
    found = [torch.zeros_like(x) for x in (query, key, value)]
    for q, k in zip(pieces(query_from), pieces(key_from), strict=True):
        if q.start == q.stop or k.start == k.stop:
            continue
        sequence = [laid(x, query.shape[1]) for x in (query[q], key[k], value[k])]
        kept = (laid(out[q], query.shape[1]), normalizer[None, :, q])
        grads = CPU._scaled_dot_product_flash_attention_for_cpu_backward(
            laid(grad[q], query.shape[1]), *sequence, *kept, 0.0, causal, scale=scale
        )
        for whole, at, part in zip(found, (q, k, k), grads, strict=True):
            whole[at] = part[0].transpose(0, 1).unflatten(1, (whole.shape[1], -1)).sum(2)
    return tuple(found)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "flash_attend", attend)
    monkeypatch.setattr(ours, "flash_attend_backward", attend_backward)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("rows", [IDS, IDS[3:]], ids=["branches", "prompts alone"])
def test_it_is_the_attention_of_the_mask(rows: list[list[int]]) -> None:
    branch_ids = torch.tensor(rows)
    inputs, twins = (
        [torch.randn(len(rows), heads, 9, 8, dtype=torch.float64) for heads in (4, 2, 2)]
        for _ in range(2)
    )
    for x, twin in zip(inputs, twins, strict=True):
        twin.copy_(x).requires_grad_()
        x.requires_grad_()
    found = ours.flash_branches(
        *inputs, branch_segments(branch_ids, branch_layout(branch_ids, 3)), scale=0.3
    )
    mask = branch_attention_mask(branch_ids)
    expected, _ = grouped_attention(Layer(), *twins, mask, scaling=0.3)
    exists = branch_ids >= 0
    torch.testing.assert_close(found[exists], expected[exists], **FP32)  # normalizers are float32
    weights = torch.randn_like(found[exists])
    (found[exists] * weights).sum().backward()
    (expected[exists] * weights).sum().backward()
    for x, twin in zip(inputs, twins, strict=True):
        torch.testing.assert_close(x.grad, twin.grad, **FP32)


@pytest.mark.usefixtures("kernels")
def test_the_comparison_before_use_tells_right_from_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with torch.no_grad(), torch.device("meta"):  # as where a model is made on a GPU
        assert ours.largest_gap(cpu, torch.float64, 16) < 1e-5
    monkeypatch.setattr(
        ours, "flash_attend_backward", lambda *args: attend_backward(-args[0], *args[1:])
    )
    assert ours.largest_gap(cpu, torch.float64, 16) > 1


def test_what_keeps_the_kernels_from_use_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        reason = ours._obstacle(torch.device("cpu"), torch.bfloat16, 24)  # no such kernel on CPU
    assert reason is not None
    assert "can't use flash kernels, so it computes with masks" in caplog.text
    assert reason in caplog.text


def test_where_they_are_not_for_nothing_is_tried() -> None:
    assert not ours.flash_serves(torch.device("cpu"), torch.bfloat16, 64)
    gpu = torch.device("cuda")
    assert not ours.flash_serves(gpu, torch.float32, 64)
    assert not ours.flash_serves(gpu, torch.bfloat16, 20)


def test_an_estimate_for_a_gpu_counts_them_under_its_autocast_too() -> None:
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, head_dim=8
    )
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        runner = BranchRunner(LlamaModel(config), config, "sdpa", "auto")
    runner.splits = True
    for kind, autocast, flash in (("cuda", None, False), ("cuda", torch.bfloat16, True)):
        with acting(kind, autocast):
            assert runner.is_flash() == flash
    with acting("cpu", torch.bfloat16):
        assert not runner.is_flash()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
def test_a_model_gives_what_it_gives_under_the_mask(
    make: MakeBackbone, batch: BranchedBatch, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(ours, "is_half", lambda *tensors: not calls.append(tensors))
    found = []
    for flash in (True, False):
        monkeypatch.setattr(
            "lit_rlhf.models.branched.flash_serves", lambda *kind, flash=flash: flash
        )
        backbone = with_heads(make(branching="shared", gradient_checkpointing=checkpointing))
        calls.clear()  # of the comparison that each model goes through
        torch.manual_seed(0)
        backbone.heads["reward"].weight.data.normal_()
        backbone.heads["value"].weight.data.normal_()
        out = evaluate(backbone, batch)
        (out.logprobs.sum() + out.values.square().sum() + out.scores.sum()).backward()
        found.append((out.logprobs.detach(), gradients(backbone)))
        # of two layers
        assert len(calls) == flash * (4 if checkpointing else 2)
    torch.testing.assert_close(found[0][0], found[1][0], **FP32_MODEL)
    for name, gradient in found[0][1].items():
        scale = found[1][1][name].abs().max()
        torch.testing.assert_close(
            gradient / scale, found[1][1][name] / scale, msg=name, **FP32_MODEL
        )


def test_other_dtypes_take_the_mask() -> None:
    branch_ids = torch.tensor(IDS)[:1]
    inputs = [x[:1] for x in tensors(9, 9)]
    mask = branch_attention_mask(branch_ids)
    plain, _ = grouped_attention(Layer(), *inputs, mask)
    with apart(branch_segments(branch_ids, branch_layout(branch_ids, 3))):
        assert torch.equal(grouped_attention(Layer(), *inputs, mask)[0], plain)
