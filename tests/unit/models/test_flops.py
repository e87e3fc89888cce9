"""FLOPs by arithmetic against those that torch counts operator by operator."""

import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig, MixtralModel

from lit_rlhf.functional.branches import pack_branches
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from lit_rlhf.models.branched import Costs
from lit_rlhf.models.flops import generation_flops, measure_peak_flops, pass_flops
from lit_rlhf.types import BranchedBatch

PROMPT, ANSWER, ROWS = 9, 6, 3
LENGTH = PROMPT + ANSWER


def _backbone(model_dir: Path, lora: LoraSpec | None) -> Backbone:
    backbone = Backbone.load(ModelSpec(name=str(model_dir), lora=lora, attention="eager"))
    if lora is not None:
        backbone.add_adapter("policy")
    return backbone


def _batch(answers: int = 1) -> BranchedBatch:
    def ones(rows: int, width: int) -> torch.Tensor:
        return torch.ones(rows, width, dtype=torch.bool)

    ids = torch.randint(6, 200, (ROWS, PROMPT))
    tokens = torch.randint(6, 200, (ROWS * answers, ANSWER))
    packed = pack_branches(ids, ones(ROWS, PROMPT), tokens, ones(ROWS * answers, ANSWER))
    return BranchedBatch(**packed._asdict())


def _counted(backbone: Backbone, backward: bool) -> tuple[float, float]:
    """FLOPs of linear layers, and of attention, as torch counts them."""
    products = {
        # not known to it
        torch.ops.aten.addmm_: lambda _, left, right, **kwargs: 2 * math.prod(left) * right[1],
        # some transformers make the angles of rotary positions by an outer product, which sums nothing
        torch.ops.aten.bmm: lambda left, right, **kwargs: (
            2 * math.prod(left) * right[-1] if left[-1] > 1 else 0
        ),
    }
    with (
        FlopCounterMode(display=False, custom_mapping=products) as counter,
        torch.set_grad_enabled(backward),
    ):
        out = backbone(_batch(), num_branches=1, role="policy", logprobs=True)
        if backward:
            out.logprobs.sum().backward()
    counts = {
        str(name): float(value) for name, value in counter.get_flop_counts()["Global"].items()
    }
    attention = counts.pop("aten.bmm")
    return sum(counts.values()), attention


@pytest.mark.parametrize("rank", [None, 4], ids=["full", "lora"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_arithmetic_agrees_with_torchs_counter(
    tiny_model_dir: Path, rank: int | None, backward: bool
) -> None:
    backbone = _backbone(tiny_model_dir, LoraSpec(rank=rank) if rank else None)
    config = backbone.model.config
    linear, attention = _counted(backbone, backward)
    width, layers = config.num_attention_heads * config.head_dim, config.num_hidden_layers
    # Eager attention computes all pairs, of which the causal ones count here.
    products = 6 if backward else 2
    assert attention == 2 * products * layers * width * ROWS * LENGTH**2
    counted = linear + attention * (LENGTH + 1) / (2 * LENGTH)
    head = 2 * config.vocab_size * config.hidden_size * ROWS * ANSWER
    if backward and rank is None:
        counted -= head  # logits are computed again in chunks: no model FLOPs
    if backward and rank is not None:
        # Nothing before the first layer is trained, so what enters it needs no gradient.
        first = [
            backbone.decoder.layers[0].self_attn.get_submodule(f"{name}_proj") for name in "qkv"
        ]
        spared = sum(layer.in_features * (layer.out_features + rank) for layer in first)
        counted += 2 * spared * ROWS * LENGTH
    ours = pass_flops(backbone, _batch(), "policy", logprobs=True, backward=backward)
    assert float(ours) == pytest.approx(counted, rel=1e-12)


def test_a_prompt_counts_once_and_padding_never(tiny_model_dir: Path) -> None:
    backbone = _backbone(tiny_model_dir, None)
    batch = _batch(answers=4)
    config = backbone.model.config
    weights = sum(
        p.numel()
        for name, p in backbone.decoder.named_parameters()
        if name.endswith("_proj.weight")
    )
    pairs = PROMPT * (PROMPT + 1) / 2 + 4 * sum(PROMPT + i for i in range(1, ANSWER + 1))
    expected = (
        2 * weights * (PROMPT + 4 * ANSWER)
        + 4 * config.num_hidden_layers * config.hidden_size * pairs
    )
    ours = pass_flops(backbone, batch, "policy", logprobs=False, backward=False)
    assert float(ours) == ROWS * expected
    padded = BranchedBatch(
        input_ids=torch.nn.functional.pad(batch["input_ids"], (0, 3)),
        branch_ids=torch.nn.functional.pad(batch["branch_ids"], (0, 3), value=-1),
        position_ids=torch.nn.functional.pad(batch["position_ids"], (0, 3)),
    )
    assert float(pass_flops(backbone, padded, "policy", logprobs=False, backward=False)) == float(
        ours
    )


def test_generation_takes_what_a_forward_over_its_tokens_takes(tiny_model_dir: Path) -> None:
    """All but the last token of each completion is read, and each one is predicted."""
    backbone = _backbone(tiny_model_dir, LoraSpec(rank=4))
    mask = torch.ones(ROWS * 2, ANSWER, dtype=torch.bool)
    ours = generation_flops(backbone, "policy", torch.ones(ROWS, PROMPT, dtype=torch.bool), mask)
    whole = pass_flops(backbone, _batch(answers=2), "policy", logprobs=True, backward=False)
    costs, adapter = (
        backbone.costs,
        sum(p.numel() for p in backbone.adapter_weights("policy").values()),
    )
    last = costs.per_token + 2 * adapter + costs.per_pair * LENGTH
    assert float(ours) == float(whole) - 2 * ROWS * last
    mask[0, 1:] = False  # the first one ended at once
    fewer = generation_flops(backbone, "policy", torch.ones(ROWS, PROMPT, dtype=torch.bool), mask)
    assert float(fewer) < float(ours)


def test_peak_is_finite() -> None:
    assert 1e6 < measure_peak_flops(torch.device("cpu"), size=64) < math.inf
    assert 1e5 < measure_peak_flops(torch.device("cpu"), torch.bfloat16, size=64) < math.inf


def test_of_experts_those_count_that_a_token_passes() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = MixtralConfig(**sizes, **heads, num_local_experts=8, num_experts_per_tok=2)
    with torch.device("meta"):
        trunk = MixtralModel(config)
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    experts = 2 * 3 * 32 * 48
    assert Costs.of(trunk, config, "eager").per_token == 2 * 2 * (attention + experts)
