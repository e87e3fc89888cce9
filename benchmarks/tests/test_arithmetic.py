"""Counted arithmetic against torch's own count and one by position; how growth is summarised."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from benchmarks.comparison.growth import AXES, growth, plot, points, shown, utilisation
from benchmarks.workloads.arithmetic import Decoder
from benchmarks.workloads.growth_point import PHASES, Point
from lit_rlhf.testing.models import tiny_config

LENGTH = 24


# peft 0.21 reads it of transformers 5.24
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("backward", [False, True])
def test_a_row_without_branches_costs_what_torch_counts(rank: int, backward: bool) -> None:
    config = tiny_config(50, attn_implementation="eager")
    model = LlamaForCausalLM(config)
    if rank:
        layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model.enable_input_require_grads()  # else the first layer's inputs need no gradient: not told apart here
        model = get_peft_model(model, LoraConfig(r=rank, target_modules=layers))
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=torch.arange(LENGTH)[None] % 50).logits
        if backward:
            logits.sum().backward()
    decoder = Decoder.from_config(config.to_dict(), rank)
    ours = (decoder.train if backward else decoder.forward)(LENGTH, [], LENGTH)
    # The kernel computes masked positions as well.
    whole = 4.0 * decoder.layers * decoder.heads * decoder.head_dim * LENGTH**2
    passes = 3 if backward else 1
    expected = counter.get_total_flops() - passes * (whole - decoder.attention(LENGTH, []))
    assert ours == pytest.approx(expected, rel=1e-3)


def test_attention_sees_the_prompt_and_the_own_branch() -> None:
    prompt, branches = 5, [3, 1, 4]
    branch_of = [0] * prompt + [k for k, n in enumerate(branches, 1) for _ in range(n)]
    visible = sum(
        branch_of[j] in (0, branch_of[i]) for i in range(len(branch_of)) for j in range(i + 1)
    )
    decoder = Decoder(
        layers=2, hidden=8, intermediate=16, heads=4, kv_heads=2, head_dim=3, vocabulary=7
    )
    assert decoder.attention(prompt, branches) == 4 * 2 * 4 * 3 * visible


def test_generation_costs_its_steps() -> None:
    decoder = Decoder(
        layers=2, hidden=8, intermediate=16, heads=4, kv_heads=2, head_dim=3, vocabulary=7
    )
    prompt, length = 6, 4
    steps = decoder.forward(prompt, [], 1)
    for fed in range(1, length):
        steps += 2 * decoder.linear + 2 * decoder.head + 4 * 2 * 4 * 3 * (prompt + fed)
    assert decoder.generate(prompt, [length]) == steps
    more = decoder.generate(prompt, [length, length]) - steps
    # The prompt is computed once.
    assert more == steps - decoder.forward(prompt, [], 1) + 2 * decoder.head


def fake(point: Point, time_exponent: float) -> dict[str, object]:
    cost = float(point.samples**time_exponent)
    return {
        "point": vars(point),
        "parameters": 135e6,
        "seconds": dict.fromkeys(PHASES, cost),
        "flops": dict.fromkeys(PHASES, 1e9 * point.samples),
        "peak_bytes": dict.fromkeys(PHASES, 10**9 * point.samples**0.5),
        "peaks": {"bfloat16": 2e9},
    }


def along_samples(values: Sequence[int], time_exponent: float) -> list[dict[str, object]]:
    return [fake(Point("model", {}, 2, 128, value, 32), time_exponent) for value in values]


def test_growth_is_told_as_exponents() -> None:
    results = along_samples((1, 2, 16), 1.5)
    found = growth("samples", results)["update"]
    assert found["time"] == pytest.approx(1.5)
    assert found["flops"] == pytest.approx(1.0)
    assert found["memory"] == pytest.approx(0.5)
    assert found["excess"] == pytest.approx(0.5)
    assert utilisation(results[0], "update") == pytest.approx(0.5)


def test_growth_has_a_table_and_a_plot(tmp_path: Path) -> None:
    axes = {"samples": along_samples((1, 4), 1.0)}
    text = shown(axes)
    assert (
        len([line for line in text.splitlines() if line.startswith(f"| {AXES['samples']} |")]) == 3
    )
    plot(axes, tmp_path / "growth.svg")
    assert "<svg" in (tmp_path / "growth.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("quick", [False, True])
def test_each_axis_changes_one_thing_and_passes_through_the_base(quick: bool) -> None:
    axes = points(Path("model"), quick, 2)
    assert set(axes) == set(AXES)
    common = set.intersection(*({repr(point) for point in of} for of in axes.values()))
    assert len(common) == 1
    for axis, of in axes.items():
        name = "overrides" if axis == "size" else axis
        assert len({repr(getattr(point, name)) for point in of}) == len(of) > 1
        assert len({repr({**vars(point), name: None}) for point in of}) == 1
