"""The branched forward: shared rows, expanded rows and plain separate rows say the same."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from lit_rlhf.models.branched import BranchRunner, Costs
from lit_rlhf.models.specs import Attention, Branching
from lit_rlhf.types import BranchedBatch
from tests.reference.models import padded, plain_model, separate_rows
from tests.tolerances import BF16, FP32, FP32_MODEL
from tests.unit.models.conftest import LORA, ROWS, MakeBackbone, branched, gradients, shake

ARCHITECTURES = ("llama", "gemma2", "gpt2")


def evaluate(backbone: Backbone, batch: BranchedBatch, **options: Any):
    return backbone(
        batch,
        num_branches=2,
        logprobs=True,
        entropy=True,
        values="value",
        scores="reward",
        **options,
    )


def with_heads(backbone: Backbone):
    backbone.add_head("reward")
    backbone.add_head("value")
    backbone.heads["value"].weight.data.normal_()
    return backbone


@pytest.mark.parametrize(
    ("branching", "attention"),
    [("shared", "sdpa"), ("expanded", "sdpa"), ("auto", "sdpa"), ("shared", "eager")],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_separate_rows(
    model_dirs: dict[str, Path],
    batch: BranchedBatch,
    architecture: str,
    branching: Branching,
    attention: Attention,
):
    spec = ModelSpec(name=str(model_dirs[architecture]), branching=branching, attention=attention)
    backbone = with_heads(Backbone.load(spec))
    out = evaluate(backbone, batch, temperature=0.7)
    with torch.no_grad():
        theirs = separate_rows(plain_model(model_dirs[architecture]), ROWS, temperature=0.7)
    width = out.mask.shape[1]
    assert out.mask.sum(-1).tolist() == [3, 4, 1, 3, 4, 2]
    torch.testing.assert_close(out.logprobs, padded(theirs.logprobs, width), **FP32_MODEL)
    torch.testing.assert_close(out.entropy, padded(theirs.entropy, width), **FP32_MODEL)
    value, reward = backbone.heads["value"].weight, backbone.heads["reward"].weight
    torch.testing.assert_close(
        out.values, padded([s @ value for s in theirs.states], width), **FP32_MODEL
    )
    torch.testing.assert_close(
        out.scores, torch.stack([s @ reward for s in theirs.last]), **FP32_MODEL
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_gradients_of_shared_and_expanded_agree(
    model_dirs: dict[str, Path], batch: BranchedBatch, architecture: str, lora: LoraSpec | None
):
    found = []
    for branching in ("shared", "expanded"):
        spec = ModelSpec(name=str(model_dirs[architecture]), branching=branching, lora=lora)
        backbone = Backbone.load(spec)
        if lora is not None:
            backbone.add_adapter("policy")
            shake(backbone, "policy")
        torch.manual_seed(1)
        with_heads(backbone)
        out = evaluate(backbone, batch, entropy_grad=True)
        weights = torch.linspace(-1, 1, out.mask.numel()).view(out.mask.shape)
        ((out.logprobs + out.entropy + out.values.square()) * weights).sum().add(
            out.scores.square().sum()
        ).backward()
        found.append(gradients(backbone))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        scale = found[1][name].abs().max()
        torch.testing.assert_close(gradient / scale, found[1][name] / scale, msg=name, **FP32_MODEL)


def test_gradient_equals_that_of_separate_rows(model_dirs: dict[str, Path], batch: BranchedBatch):
    backbone = Backbone.load(ModelSpec(name=str(model_dirs["llama"]), branching="shared"))
    backbone(batch, num_branches=2, logprobs=True).logprobs.sum().backward()
    plain = plain_model(model_dirs["llama"])
    torch.cat(separate_rows(plain, ROWS).logprobs).sum().backward()
    for name, parameter in plain.named_parameters():
        ours = dict(backbone.model.named_parameters())[name].grad
        scale = parameter.grad.abs().max()
        torch.testing.assert_close(ours / scale, parameter.grad / scale, msg=name, **FP32_MODEL)


@pytest.mark.parametrize("branching", ["shared", "expanded"])
def test_padding_and_what_it_is_filled_with_change_nothing(make: MakeBackbone, branching: str):
    backbone = with_heads(make(branching=branching))
    plain, wide = branched(ROWS), branched(ROWS, extra=5)
    wide["input_ids"][wide["branch_ids"] < 0] = 77
    with torch.no_grad():
        ours, theirs = evaluate(backbone, plain), evaluate(backbone, wide)
    for name in ("logprobs", "entropy", "values", "scores", "mask"):
        torch.testing.assert_close(
            getattr(ours, name), getattr(theirs, name), msg=name, **FP32_MODEL
        )


@pytest.mark.parametrize("branching", ["shared", "expanded"])
def test_rows_and_branches_do_not_see_each_other(make: MakeBackbone, branching: str):
    backbone = with_heads(make(branching=branching))
    turned = [(prompt, branches[::-1]) for prompt, branches in ROWS[::-1]]
    with torch.no_grad():
        ours, theirs = evaluate(backbone, branched(ROWS)), evaluate(backbone, branched(turned))
    torch.testing.assert_close(ours.logprobs, theirs.logprobs.flip(0), **FP32_MODEL)
    torch.testing.assert_close(ours.scores, theirs.scores.flip(0), **FP32_MODEL)


def test_masked_places_are_zero_and_one_branch_works(make: MakeBackbone):
    backbone = with_heads(make())
    single = branched([(prompt, branches[:1]) for prompt, branches in ROWS])
    out = backbone(single, num_branches=1, logprobs=True, entropy=True, values="value")
    both = evaluate(backbone, branched(ROWS))
    torch.testing.assert_close(out.logprobs, both.logprobs[::2], **FP32_MODEL)
    for part in (out.logprobs, out.entropy, out.values):
        assert part[~out.mask].abs().sum() == 0


def test_bfloat16_ways_agree(make: MakeBackbone, batch: BranchedBatch):
    ways = [with_heads(make(dtype="bfloat16", branching=way)) for way in ("shared", "expanded")]
    ways[1].load_state_dict(ways[0].state_dict())
    ours, theirs = (evaluate(backbone, batch) for backbone in ways)
    assert ours.logprobs.dtype == ours.scores.dtype == torch.float32
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, **BF16)
    torch.testing.assert_close(ours.scores, theirs.scores, **BF16)


def test_auto_takes_the_way_with_fewer_flops(make: MakeBackbone):
    backbone = make()
    runner = backbone._runner
    long_prompt = branched([(range(1, 41), [[1, 2], [3, 4]])] * 2)
    long_branches = branched([([1], [range(1, 60), range(2, 61), range(3, 62), range(4, 63)])] * 2)
    assert runs_shared(runner, long_prompt, 2)
    runner.costs = Costs(per_token=1.0, per_pair=1.0, causal_share=0.5)  # attention dominates
    assert not runs_shared(runner, long_branches, 4)
    assert not runs_shared(runner, branched([([1, 2], [[3]])]), 1)


def test_auto_shares_long_branches_that_are_computed_apart(make: MakeBackbone):
    """A mask over whole rows costs the pairs between branches; apart, K long branches cost what K rows do."""
    backbone = make()
    runner = backbone._runner
    runner.costs = Costs(per_token=1.0, per_pair=1.0, causal_share=1.0)
    long_branches = branched(
        [(range(1, 21), [range(1, 60), range(2, 61), range(3, 62), range(4, 63)])] * 2
    )
    assert runs_shared(runner, long_branches, 4)
    runner.splits = False
    assert not runs_shared(runner, long_branches, 4)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
def test_apart_gives_what_the_mask_gives(
    make: MakeBackbone, batch: BranchedBatch, checkpointing: bool
):
    found = []
    for splits in (True, False):
        backbone = with_heads(make(branching="shared", gradient_checkpointing=checkpointing))
        assert backbone._runner.splits
        backbone._runner.splits = splits
        torch.manual_seed(0)
        backbone.heads["reward"].weight.data.normal_()
        backbone.heads["value"].weight.data.normal_()
        out = evaluate(backbone, batch)
        (out.logprobs.sum() + out.values.square().sum() + out.scores.sum()).backward()
        found.append((out.logprobs.detach(), gradients(backbone)))
    torch.testing.assert_close(found[0][0], found[1][0], **FP32_MODEL)
    for name, gradient in found[0][1].items():
        scale = found[1][1][name].abs().max()
        torch.testing.assert_close(
            gradient / scale, found[1][1][name] / scale, msg=name, **FP32_MODEL
        )


def runs_shared(runner: BranchRunner, batch: BranchedBatch, branches: int):
    from lit_rlhf.functional.branches import branch_layout

    return runner.shares(batch["branch_ids"], branch_layout(batch["branch_ids"], branches))


def test_costs_count_what_the_layers_do(make: MakeBackbone, model_dirs: dict[str, Path]):
    costs = make()._runner.costs
    # two layers: q, o 32x32; k, v 32x16; gate, up, down 32x64
    assert costs.per_token == 2 * 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert costs.per_pair == 2 * 4 * 32
    gpt2 = Backbone.load(ModelSpec(name=str(model_dirs["gpt2"])))
    assert gpt2._runner.costs.per_token == 2 * 2 * 12 * 32 * 32


def test_a_sliding_window_is_respected(
    model_dirs: dict[str, Path], batch: BranchedBatch, tmp_path: Path
):
    path = shutil.copytree(model_dirs["gemma2"], tmp_path / "windowed")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "sliding_window": 4}))
    with torch.no_grad():
        theirs, without = (
            separate_rows(plain_model(model), ROWS) for model in (path, model_dirs["gemma2"])
        )
    assert not torch.allclose(theirs.logprobs[1], without.logprobs[1], **FP32_MODEL)
    out = Backbone.load(ModelSpec(name=str(path)))(batch, num_branches=2, logprobs=True)
    torch.testing.assert_close(out.logprobs, padded(theirs.logprobs, 4), **FP32_MODEL)
    with pytest.raises(
        ConfigurationError, match="a row has 12 tokens, more than the sliding window of 4"
    ):
        Backbone.load(ModelSpec(name=str(path), branching="shared"))(
            batch, num_branches=2, logprobs=True
        )


def test_prompts_alone_are_refused(tiny_model_dir: Path):
    backbone = with_heads(Backbone.load(ModelSpec(name=str(tiny_model_dir))))
    with pytest.raises(DataError, match=r"prompts without completions.*PreferenceDataModule"):
        backbone(branched([([5, 6], []), ([7], [])]), num_branches=0, scores="reward")


def test_shared_is_refused_where_it_would_be_wrong(tiny_model_dir: Path, batch: BranchedBatch):
    mamba = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    options = {"config": mamba, "tokenizer": str(tiny_model_dir), "attention": "eager"}
    with pytest.raises(
        ConfigurationError, match="branching='shared' can't run: MambaModel takes no position_ids"
    ):
        Backbone.load(ModelSpec(**options, branching="shared"))
    backbone = Backbone.load(ModelSpec(**options))
    out = backbone(batch, num_branches=2, logprobs=True)
    alone = backbone(branched(ROWS[1:2]), num_branches=2, logprobs=True)
    torch.testing.assert_close(out.logprobs[2:4, :3], alone.logprobs, **FP32_MODEL)


def test_flash_attention_takes_no_mask(make: MakeBackbone, batch: BranchedBatch):
    backbone = make()
    runner = BranchRunner(backbone.decoder, backbone.model.config, "flash_attention_2", "auto")
    assert "attention='flash_attention_2' takes no mask" in str(runner.obstacle)
    assert not runs_shared(runner, branched([(range(1, 41), [[1, 2], [3, 4]])]), 2)
    with pytest.raises(
        ConfigurationError, match="branching='shared' can't run: attention='flash_attention_2'"
    ):
        BranchRunner(backbone.decoder, backbone.model.config, "flash_attention_2", "shared")


def test_recurrent_layers_take_no_mask(make: MakeBackbone):
    backbone = make()
    backbone.model.config.layer_types = ["full_attention", "linear_attention"]
    runner = BranchRunner(backbone.decoder, backbone.model.config, "sdpa", "auto")
    assert "layers ['linear_attention'], in which no mask tells branches apart" in str(
        runner.obstacle
    )


def test_a_decoder_that_fails_the_comparison_at_loading_is_expanded(
    make: MakeBackbone, monkeypatch: pytest.MonkeyPatch, batch: BranchedBatch
):
    from lit_rlhf.models import branched as module

    original = module.branch_attention_mask
    monkeypatch.setattr(module, "computes_apart", lambda config: False)
    monkeypatch.setattr(
        module, "branch_attention_mask", lambda ids: original(ids.new_zeros(ids.shape))
    )
    backbone = make()
    assert "gives other states for a branch under a mask" in backbone._runner.obstacle
    monkeypatch.undo()
    torch.testing.assert_close(
        backbone(batch, num_branches=2, logprobs=True).logprobs,
        make(branching="shared")(batch, num_branches=2, logprobs=True).logprobs,
        **FP32_MODEL,
    )


def test_runs_on_the_meta_device_without_mixing_devices(tiny_model_dir: Path, batch: BranchedBatch):
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
    }
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.device("meta"):
        backbone = Backbone.load(ModelSpec(config=config, tokenizer=str(tiny_model_dir), lora=LORA))
        backbone.add_adapter("policy")
        with_heads(backbone)
    on_meta = {name: value.to("meta") for name, value in batch.items()}
    out = evaluate(backbone, on_meta)
    out.logprobs.sum().add(out.values.sum()).add(out.scores.sum()).backward()
    assert all(
        p.grad is not None and p.grad.is_meta for p in backbone.parameters() if p.requires_grad
    )


def test_an_empty_branch_and_a_long_one(make: MakeBackbone):
    backbone = with_heads(make())
    lacking = branched([([11, 12], [[13, 14, 15], []]), ([16], [[17], [18]])])
    out = evaluate(backbone, lacking)
    assert out.mask.sum(-1).tolist() == [3, 0, 1, 1]
    assert torch.isfinite(out.scores).all()
    torch.testing.assert_close(out.logprobs[1], torch.zeros(3), **FP32)
