"""References that follow the policy: by hand, in every arrangement, and exactly after a resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.callbacks import MovingReference
from lit_rlhf.data import PreferenceDataModule, RowsSource
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.models import LoraSpec, ModelSpec, load_checkpoint_backbone
from lit_rlhf.modules import PreferenceModule, RewardModelModule
from lit_rlhf.objectives import DPO, SimPO
from lit_rlhf.testing import tiny_preferences
from tests.tolerances import FP32
from tests.unit.modules.policies import make_ppo, make_trainer, prompt_loader

KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": LoraSpec(rank=4)},
    "nf4": {"lora": LoraSpec(rank=4), "quantization": "nf4"},
}


def make_module(model_dir: Path, kind: str, **options: Any) -> PreferenceModule:
    spec = ModelSpec(name=str(model_dir), **KINDS[kind])
    defaults: dict[str, Any] = {"optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-2)}
    return PreferenceModule(spec, **({"loss": DPO(beta=0.5)} | defaults | options))


def make_data(model_dir: Path, cache: Path) -> PreferenceDataModule:
    rows = RowsSource(tiny_preferences(8))
    return PreferenceDataModule(rows, tokenizer=str(model_dir), batch_size=4, cache_dir=str(cache))


class Recorder(Callback):
    """Policy and reference after each iteration; stands before MovingReference, so both as they were in it."""

    def __init__(self) -> None:
        self.policy: list[dict[str, Tensor]] = []
        self.reference: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for history, weights in zip(
            (self.policy, self.reference), weights_of(pl_module), strict=True
        ):
            history.append(weights)


def weights_of(module: LightningModule) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is trained, and its twin in the reference, under the same names."""
    everything = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    reference = {
        name.replace("reference.model.", "backbone.", 1)
        if name.startswith("reference.")
        else name.replace(".reference.", ".policy."): w
        for name, w in everything.items()
        if name.startswith("reference.") or ".reference." in name
    }
    return {name: everything[name] for name in reference}, reference


def fit(
    module: PreferenceModule, data: PreferenceDataModule, *callbacks: Callback, **options: Any
) -> Trainer:
    trainer = make_trainer(
        **({"max_epochs": 2, "num_sanity_val_steps": 0, "callbacks": [*callbacks]} | options)
    )
    trainer.fit(module, datamodule=data)
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_soft_updates_are_an_average(kind: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    module, seen = make_module(tiny_model_dir, kind), Recorder()
    fit(
        module,
        make_data(tiny_model_dir, tmp_path),
        seen,
        MovingReference(0.3, every_n_iterations=2),
    )
    assert len(seen.policy) == 4
    for name, start in seen.reference[0].items():
        assert torch.equal(seen.reference[1][name], start)  # not yet due
        first = 0.3 * seen.policy[1][name] + 0.7 * start
        assert_close(seen.reference[2][name], first, **FP32)
        last = 0.3 * seen.policy[3][name] + 0.7 * first
        assert_close(weights_of(module)[1][name], last, **FP32)
    assert any(
        (seen.reference[2][name] - start).abs().max() > 1e-3
        for name, start in seen.reference[0].items()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_hard_update_makes_the_policy_the_reference(
    kind: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """As in sDPO, at the end of each epoch."""
    module, seen = make_module(tiny_model_dir, kind), Recorder()
    fit(module, make_data(tiny_model_dir, tmp_path), seen, MovingReference(1.0, every_n_epochs=1))
    for name, start in seen.reference[0].items():
        assert torch.equal(seen.reference[1][name], start)
        assert torch.equal(seen.reference[2][name], seen.policy[1][name])
    data = make_data(tiny_model_dir, tmp_path)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module.eval()
    assert_close(
        module.reference_statistics(batch).logprobs, module(batch).logprobs.detach(), **FP32
    )


def test_the_initial_reference_is_the_initial_policy(tiny_model_dir: Path) -> None:
    for kind in KINDS:
        module = make_module(tiny_model_dir, kind)
        module.reference.moves = True
        module.configure_model()
        policy, reference = weights_of(module)
        assert reference and all(
            torch.equal(reference[name], weight) for name, weight in policy.items()
        )
        frozen = [
            w
            for n, w in module.named_parameters()
            if n.startswith("reference.") or ".reference." in n
        ]
        assert not any(weight.requires_grad for weight in frozen)


@pytest.mark.parametrize(
    ("kind", "period"), [("full", {"every_n_epochs": 1}), ("lora", {"every_n_iterations": 3})]
)
def test_resume_is_exact(
    kind: str, period: dict[str, int], tiny_model_dir: Path, tmp_path: Path
) -> None:
    whole = make_module(tiny_model_dir, kind)
    fit(whole, make_data(tiny_model_dir, tmp_path), MovingReference(0.5, **period), max_epochs=3)
    first = fit(
        make_module(tiny_model_dir, kind),
        make_data(tiny_model_dir, tmp_path),
        MovingReference(0.5, **period),
    )
    first.save_checkpoint(tmp_path / "half.ckpt")
    second = make_module(tiny_model_dir, kind)
    make_trainer(
        max_epochs=3, num_sanity_val_steps=0, callbacks=[MovingReference(0.5, **period)]
    ).fit(
        second,
        datamodule=make_data(tiny_model_dir, tmp_path),
        ckpt_path=tmp_path / "half.ckpt",
        weights_only=True,
    )
    for ours, theirs in zip(weights_of(second), weights_of(whole), strict=True):
        assert ours.keys() == theirs.keys() and ours
        assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_a_checkpoint_brings_its_reference_along(tiny_model_dir: Path, tmp_path: Path) -> None:
    module = make_module(tiny_model_dir, "lora")
    trainer = fit(
        module, make_data(tiny_model_dir, tmp_path), MovingReference(0.5, every_n_iterations=1)
    )
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert load_checkpoint_backbone(tmp_path / "last.ckpt").adapters == ("policy", "reference")


@pytest.mark.parametrize("arrangement", ["full-head", "lora-head", "nf4-adapter"])
def test_policies_against_an_average_of_their_past(arrangement: str, tiny_model_dir: Path) -> None:
    module, seen = make_ppo(tiny_model_dir, arrangement), Recorder()
    trainer = make_trainer(callbacks=[seen, MovingReference(0.25, every_n_iterations=1)])
    trainer.fit(module, prompt_loader(tiny_model_dir))
    for name, start in seen.reference[0].items():
        assert_close(seen.reference[1][name], 0.25 * seen.policy[0][name] + 0.75 * start, **FP32)
    module.iteration = 0
    batch = next(iter(prompt_loader(tiny_model_dir)))
    rollout = module.evaluate(module.sample(batch, module.sampling, "rollout", 1)[0])
    moved = weights_of(module)[1]
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name in moved and weight.requires_grad:
                weight.copy_(moved[name])
    as_policy = module.policy_forward(rollout).logprobs
    assert_close(rollout.ref_logprobs, as_policy.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0, "every_n_epochs": 1}, r"alpha must be in \(0, 1\]"),
        ({"alpha": 1.1, "every_n_epochs": 1}, r"alpha=1.1"),
        ({}, "set exactly one of them"),
        ({"every_n_epochs": 1, "every_n_iterations": 1}, "set exactly one of them"),
        ({"every_n_iterations": 0}, "to 1 or more"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MovingReference(**options)


def refused(module: LightningModule, alpha: float = 0.5) -> str:
    with pytest.raises(ConfigurationError) as caught:
        MovingReference(alpha, every_n_epochs=1).setup(None, module, "fit")  # type: ignore[arg-type]
    return str(caught.value)


def test_references_that_cannot_move(tiny_model_dir: Path) -> None:
    spec = ModelSpec(name=str(tiny_model_dir))
    assert "RewardModelModule has none" in refused(RewardModelModule(spec))
    assert "reference='precomputed'" in refused(
        make_module(tiny_model_dir, "lora", reference="precomputed")
    )
    assert "SimPO has none" in refused(make_module(tiny_model_dir, "lora", loss=SimPO()))
    assert "reference_dtype='bfloat16'" in refused(
        make_module(tiny_model_dir, "full", reference_dtype="bfloat16")
    )
    assert "in bfloat16 small steps round away" in refused(
        PreferenceModule(ModelSpec(dtype="bfloat16", config={}))
    )
    MovingReference(1.0, every_n_epochs=1).setup(
        None, PreferenceModule(ModelSpec(dtype="bfloat16")), "fit"
    )  # type: ignore[arg-type]
    built = make_module(tiny_model_dir, "lora")
    built.configure_model()
    assert "built without a reference of its own" in refused(built)


def test_stored_log_probs_are_stale(tiny_model_dir: Path, tmp_path: Path) -> None:
    module = make_module(tiny_model_dir, "lora")
    module.reference.moves = True
    module.configure_model()
    data = make_data(tiny_model_dir, tmp_path)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    with pytest.raises(DataError, match="the reference moves: they are stale"):
        module.loss_output({**batch, "ref_logprobs": torch.zeros(4, 2)})
