"""Log-probs of the reference computed once into the data cache: the same training, and never a stale one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from lit_rlhf.data import PreferenceDataModule, RankedDataModule, RowsSource
from lit_rlhf.data.datamodule import BranchedDataModule
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec, weights_fingerprint
from lit_rlhf.modules import PreferenceModule
from lit_rlhf.objectives import DPO, PlackettLuceDPO, PreferenceLoss, SimPO
from lit_rlhf.testing import tiny_preferences, tiny_rankings, write_tiny_model
from tests.invariants.resume_plans import execute, run
from tests.tolerances import FP32
from tests.unit.modules.policies import make_trainer

KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": LoraSpec(rank=4)},
    "nf4": {"lora": LoraSpec(rank=4), "quantization": "nf4"},
}


def make_data(model_dir: Path, cache: Path, rows: int = 12, **options: Any) -> PreferenceDataModule:
    defaults: dict[str, Any] = {"val": RowsSource(tiny_preferences(5, seed=1)), "batch_size": 4}
    source = RowsSource(tiny_preferences(rows))
    return PreferenceDataModule(
        source, tokenizer=str(model_dir), cache_dir=str(cache), **(defaults | options)
    )


def make_module(
    model_dir: Path, reference: Any, kind: str = "lora", loss: Any = None
) -> PreferenceModule:
    return PreferenceModule(
        ModelSpec(name=str(model_dir), **KINDS[kind]),
        loss or DPO(beta=0.5),
        reference=reference,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, eps=1e-4),
    )


def fit(module: PreferenceModule, data: BranchedDataModule, **options: Any) -> dict[str, Any]:
    make_trainer(**({"max_epochs": 2, "num_sanity_val_steps": 0} | options)).fit(
        module, datamodule=data
    )
    return {
        name: weight.detach().clone()
        for name, weight in module.named_parameters()
        if weight.requires_grad
    }


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the rows of each batch that the reference is run on."""
    runs: list[int] = []
    plain = PreferenceModule.reference_statistics

    def counted(self: PreferenceModule, batch: Any) -> Any:
        runs.append(len(batch["input_ids"]))
        return plain(self, batch)

    monkeypatch.setattr(PreferenceModule, "reference_statistics", counted)
    return runs


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_same(
    kind: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = fit(make_module(tiny_model_dir, "live", kind), make_data(tiny_model_dir, tmp_path))
    runs = count_runs(monkeypatch)
    module = make_module(tiny_model_dir, "precomputed", kind)
    stored = fit(module, make_data(tiny_model_dir, tmp_path))
    assert sum(runs) == 12 + 5  # each row once, of training and validation
    assert "model" not in module.reference._modules
    assert live.keys() == stored.keys()
    for name, weight in live.items():
        assert_close(stored[name], weight, **FP32)
    runs.clear()
    again = fit(
        make_module(tiny_model_dir, "precomputed", kind), make_data(tiny_model_dir, tmp_path)
    )
    assert runs == []
    assert all(torch.equal(again[name], weight) for name, weight in stored.items())


def test_ranked_lists_of_unequal_length(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = [*tiny_rankings(4, completions=2), *tiny_rankings(4, seed=1, completions=4)]
    runs = []
    for reference in ("live", "precomputed"):
        data = RankedDataModule(
            RowsSource(rows), tokenizer=str(tiny_model_dir), cache_dir=str(tmp_path), batch_size=2
        )
        runs.append(
            fit(make_module(tiny_model_dir, reference, loss=PlackettLuceDPO(beta=0.5)), data)
        )
    for name, weight in runs[0].items():
        assert_close(runs[1][name], weight, **FP32)


def test_what_else_decides_them_makes_them_anew(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model under the same path, other rows, other limits, another split."""
    runs = count_runs(monkeypatch)
    model = write_tiny_model(tmp_path / "model")
    short = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}

    def rows_run(kind: str = "lora", **options: Any) -> int:
        runs.clear()
        fit(
            make_module(model, "precomputed", kind),
            make_data(model, tmp_path / "cache", val=None, **options),
            **short,
        )
        return sum(runs)

    assert rows_run() == 12
    assert rows_run() == 0
    assert rows_run("full") == 0  # the same weights, whatever is trained on top of them
    assert rows_run(rows=11) == 11
    assert rows_run(max_prompt_length=12, too_long="truncate") == 12
    assert rows_run(val_fraction=0.3) == 12
    weights = load_file(model / "model.safetensors")
    save_file(
        {name: value * 1.01 for name, value in weights.items()},
        model / "model.safetensors",
        {"format": "pt"},
    )
    assert rows_run() == 12


def test_a_resumed_run_takes_the_initial_policy(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Even where the cache is gone, and the weights in memory are trained ones."""
    whole = fit(
        make_module(tiny_model_dir, "precomputed", "full"),
        make_data(tiny_model_dir, tmp_path / "a"),
    )
    trainer = make_trainer(max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(
        make_module(tiny_model_dir, "precomputed", "full"),
        datamodule=make_data(tiny_model_dir, tmp_path / "a"),
    )
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    module = make_module(tiny_model_dir, "precomputed", "full")
    make_trainer(max_epochs=2, num_sanity_val_steps=0).fit(
        module,
        datamodule=make_data(tiny_model_dir, tmp_path / "b"),
        ckpt_path=tmp_path / "one.ckpt",
        weights_only=True,
    )
    for name, weight in module.named_parameters():
        assert torch.equal(weight, whole[name])


@pytest.mark.ddp
def test_two_processes_share_the_work(tiny_model_dir: Path, tmp_path: Path) -> None:
    """And train as they do with a live reference; eleven rows are uneven for them."""
    kinds = {"ddp": "precomputed", "fsdp2": "precomputed", "live": "live"}
    plan = []
    for name, reference in kinds.items():
        options = {
            "model": str(tiny_model_dir),
            "cache": str(tmp_path / f"cache-{name}"),
            "reference": reference,
        }
        strategy = "ddp" if name == "live" else name
        plan.append(run(tmp_path / name, tmp_path, "dpo", ranks=2, strategy=strategy, **options))
    assert execute(plan, tmp_path, script_name="precompute_runs.py") == [[0, 0]] * 3
    found = {
        name: [torch.load(tmp_path / name / f"rank-{rank}.pt") for rank in range(2)]
        for name in kinds
    }
    for name in ("ddp", "fsdp2"):
        assert [rank["rows"] for rank in found[name]] == [6 + 3] * 2
        for key, weight in found["live"][0]["weights"].items():
            assert_close(found[name][1]["weights"][key], weight, **FP32)


def test_fingerprints_go_by_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    plain = weights_fingerprint(Backbone.load(ModelSpec(name=str(tiny_model_dir))))
    adapted = Backbone.load(ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=2)))
    adapted.add_adapter("policy")
    assert weights_fingerprint(adapted) == plain
    next(iter(adapted.parameters())).data[0, 0] += 1e-3
    assert weights_fingerprint(adapted) != plain
    assert (
        weights_fingerprint(Backbone.load(ModelSpec(name=str(tiny_model_dir), dtype="bfloat16")))
        != plain
    )
    assert (
        weights_fingerprint(Backbone.load(ModelSpec(name=str(write_tiny_model(tmp_path / "copy")))))
        == plain
    )
    adapted.add_adapter("reference", copy_from="policy")
    before = weights_fingerprint(adapted)
    for name, weight in adapted.named_parameters():
        if ".reference." in name:
            weight.data += 1.0
    assert weights_fingerprint(adapted) != before


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (SimPO(), {"reference": "precomputed"}, "SimPO needs no reference: leave it out"),
        (
            SimPO(),
            {"reference_dtype": "bfloat16"},
            "reference_dtype='bfloat16' is of the frozen copy",
        ),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    tiny_model_dir: Path, loss: PreferenceLoss, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PreferenceModule(ModelSpec(name=str(tiny_model_dir)), loss, **options)
