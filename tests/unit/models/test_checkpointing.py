"""Gradient checkpointing: less is stored, nothing else changes, and recomputation plays the forward's role."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.transformers import cache_argument
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.types import BranchedBatch
from tests.tolerances import FP32
from tests.unit.models.conftest import LORA, MakeBackbone, gradients, shake

ROLES = ("policy", "value")


def build(make: MakeBackbone, *, gradient_checkpointing: bool, **options: Any):
    backbone = make(gradient_checkpointing=gradient_checkpointing, lora=LORA, **options)
    for role in ROLES:
        backbone.add_adapter(role)
        shake(backbone, role)
    backbone.add_head("value")
    backbone.heads["value"].weight.data.fill_(0.3)
    return backbone


def loss(backbone: Backbone, batch: BranchedBatch):
    """One backward for two roles, outside of both."""
    policy = backbone(batch, num_branches=2, role="policy", logprobs=True).logprobs
    value = backbone(batch, num_branches=2, role="value", values="value").values
    return policy.sum() + value.square().sum()


@pytest.mark.parametrize("branching", ["shared", "expanded"])
@pytest.mark.parametrize("surrounding", [None, "value"])
def test_gradients_are_those_without(
    make: MakeBackbone, batch: BranchedBatch, branching: str, surrounding: str | None
):
    found = []
    for enabled in (False, True):
        backbone = build(make, gradient_checkpointing=enabled, branching=branching)
        total = loss(backbone, batch)
        with backbone.use_role(surrounding):
            total.backward()
            assert backbone._adapters.active == surrounding
        found.append(gradients(backbone))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name, **FP32)


def test_layers_are_recomputed_and_store_less(make: MakeBackbone, batch: BranchedBatch):
    stored, runs = [], []
    for enabled in (False, True):
        backbone = build(make, gradient_checkpointing=enabled)
        calls: list[int] = []
        backbone.decoder.layers[0].mlp.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            out = backbone(batch, num_branches=2, role="policy", logprobs=True).logprobs
        out.sum().backward()
        stored.append(sum(sizes))
        runs.append(len(calls))
    assert runs == [1, 2]
    assert stored[1] < stored[0] / 3


def test_inference_in_eval_mode_keeps_its_cache(make: MakeBackbone, batch: BranchedBatch):
    backbone = build(make, gradient_checkpointing=True).eval()
    with torch.no_grad(), backbone.use_role("policy"):
        cache = DynamicCache()
        backbone.decoder(
            input_ids=batch["input_ids"],
            use_cache=True,
            **{cache_argument(backbone.decoder): cache},
        )
    assert cache.get_seq_length() == batch["input_ids"].shape[1]


def test_a_copy_recomputes_with_its_own_adapters(make: MakeBackbone, batch: BranchedBatch):
    import copy

    backbone = build(make, gradient_checkpointing=True)
    twin = copy.deepcopy(backbone)
    for parameter in backbone.parameters():
        parameter.data.zero_()
    loss(twin, batch).backward()
    plain = build(make, gradient_checkpointing=False)
    loss(plain, batch).backward()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(twin)[name], gradient, msg=name, **FP32)


def test_full_fine_tuning(make: MakeBackbone, batch: BranchedBatch):
    found = []
    for enabled in (False, True):
        backbone = make(gradient_checkpointing=enabled)
        backbone(batch, num_branches=2, logprobs=True).logprobs.sum().backward()
        found.append(gradients(backbone))
    assert all(
        torch.allclose(gradient, found[1][name], **FP32) for name, gradient in found[0].items()
    )


def test_refused_where_no_layer_can_be_recomputed(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    from lit_rlhf.models import loading as module

    monkeypatch.setattr(module, "GradientCheckpointingLayer", torch.nn.Bilinear)
    with pytest.raises(ConfigurationError, match="LlamaModel has no layers that can be recomputed"):
        Backbone.load(ModelSpec(name=str(tiny_model_dir), gradient_checkpointing=True))
