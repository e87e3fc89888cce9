"""What a run refuses before its first step: strategies, other checkpoints. Pad equal to EOS runs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
)
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoTokenizer

from lit_rlhf.data import FileSource, PreferenceDataModule, PromptDataModule, RowsSource, Source
from lit_rlhf.errors import CheckpointError, ConfigurationError, DataError
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import PreferenceModule, RewardModelModule, SupervisedModule
from lit_rlhf.objectives import DPO, SoftLabelDPO
from lit_rlhf.testing import tiny_preferences
from tests.tolerances import FP32_MODEL
from tests.unit.modules.policies import fit, make_ppo, make_trainer, prompt_batch


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_break_manual_optimization(
    strategy: type[Any], tiny_model_dir: Path
) -> None:
    module = make_ppo(tiny_model_dir)
    unmade = strategy.__new__(strategy)  # neither can be made without a GPU
    module._trainer = SimpleNamespace(
        strategy=unmade, max_steps=-1, precision_plugin=Precision(), world_size=1
    )  # type: ignore[assignment]
    with pytest.raises(
        ConfigurationError,
        match=rf"trainer\.strategy={strategy.__name__} can't run .*Use ddp or fsdp2",
    ):
        module.setup("fit")


class Unread(Source):
    def load(self) -> list[dict[str, Any]]:
        raise AssertionError("the data were read")


def test_what_is_not_there_is_said_before_data_are_read(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    name = str(tmp_path / "none")
    data = PreferenceDataModule(Unread(), tokenizer=str(tiny_model_dir))
    with pytest.raises(ConfigurationError, match=r"model directory .*none' doesn't exist"):
        make_trainer().fit(RewardModelModule(ModelSpec(name=name)), data)
    data = PreferenceDataModule(Unread(), FileSource(name), tokenizer=str(tiny_model_dir))
    with pytest.raises(DataError, match=r"no file .*none"):
        make_trainer().fit(RewardModelModule(ModelSpec(name=str(tiny_model_dir))), data)


def saved(module: RewardModelModule | SupervisedModule) -> dict[str, Any]:
    """What a checkpoint of a module holds."""
    module.configure_model()
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def test_checkpoints_of_something_else(tiny_model_dir: Path, tmp_path: Path) -> None:
    spec = ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4))
    checkpoint = saved(RewardModelModule(spec))
    with pytest.raises(
        CheckpointError,
        match=r"written by RewardModelModule, the model is SupervisedModule"
        r".*set model\.class_path to RewardModelModule",
    ):
        SupervisedModule(spec).on_load_checkpoint(checkpoint)
    torch.save(checkpoint, path := tmp_path / "reward.ckpt")
    with pytest.raises(CheckpointError, match="written by RewardModelModule, the model is Super"):
        SupervisedModule.load_from_checkpoint(path, backbone=spec)
    with pytest.raises(CheckpointError, match=r"was not written by lit_rlhf"):
        SupervisedModule(spec).on_load_checkpoint({"state_dict": {}})
    with pytest.raises(
        CheckpointError, match=r"have another shape; .* is \(4, .* and \(8, .*backbone\.lora"
    ):
        RewardModelModule(ModelSpec(name=spec.name, lora=LoraSpec(rank=8))).on_load_checkpoint(
            checkpoint
        )
    checkpoint["state_dict"].popitem()
    with pytest.raises(CheckpointError, match=r"1 trainable parameters are missing"):
        RewardModelModule(spec).on_load_checkpoint(checkpoint)


def test_pad_equal_to_eos_changes_no_rollout(tiny_model_dir: Path, tmp_path: Path) -> None:
    """EOS stays a token that counts, padding one that doesn't: masks come from lengths, never from ids."""
    same = tmp_path / "same"
    shutil.copytree(tiny_model_dir, same)
    tokenizer = AutoTokenizer.from_pretrained(same)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(same)
    rollouts = []
    for model in (tiny_model_dir, same):
        module = make_ppo(model, num_samples=4)
        module.configure_model()
        rollouts.append(module.collect(prompt_batch(tiny_model_dir))[0])
    ours, theirs = rollouts
    found = theirs.completions
    assert found.finished.any()
    assert not found.finished.all()
    ends = found.tokens.gather(1, found.mask.sum(-1, keepdim=True) - 1).squeeze(-1)
    assert ((ends == tokenizer.eos_token_id) == found.finished).all()
    assert (found.tokens[~theirs.response_mask] == tokenizer.eos_token_id).all()
    assert torch.equal(ours.response_mask, theirs.response_mask)
    torch.testing.assert_close(ours.scores.total, theirs.scores.total)
    for name in ("old_logprobs", "ref_logprobs"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **FP32_MODEL)


@pytest.mark.parametrize("kind", [PreferenceDataModule, PromptDataModule])
def test_imitation_takes_one_completion_of_each_prompt(
    tiny_model_dir: Path, tmp_path: Path, kind: Any
) -> None:
    rows = RowsSource(tiny_preferences(8))
    data = kind(rows, tokenizer=str(tiny_model_dir), batch_size=4, cache_dir=tmp_path / "cache")
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    with pytest.raises(DataError, match=r"one completion of each prompt, and these rows have [02]"):
        trainer.fit(SupervisedModule(ModelSpec(name=str(tiny_model_dir))), data)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (DPO(), "DPO doesn't read margin and p_chosen of the pairs; SoftLabelDPO does."),
        (SoftLabelDPO(), "SoftLabelDPO doesn't read margin of the pairs."),
    ],
)
def test_labels_that_a_loss_does_not_read_are_said(
    tiny_model_dir: Path, tmp_path: Path, loss: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = RowsSource([{**row, "margin": 1.0, "p_chosen": 0.75} for row in tiny_preferences(32)])
    data = PreferenceDataModule(
        rows, tokenizer=str(tiny_model_dir), batch_size=4, cache_dir=tmp_path / "cache"
    )
    module = PreferenceModule(ModelSpec(name=str(tiny_model_dir)), loss)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    with caplog.at_level("INFO"):
        Trainer(accelerator="cpu", max_epochs=1, **options).fit(module, data)
    assert [record.message for record in caplog.records if "doesn't read" in record.message] == [
        said
    ]


@pytest.mark.parametrize("kind", [RewardModelModule, PreferenceModule, SupervisedModule])
def test_batches_of_other_loaders_say_what_they_lack(kind: Any, tiny_model_dir: Path) -> None:
    spec = ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=2))
    ids = torch.ones(4, 3, dtype=torch.int64)
    plain = DataLoader([{"input_ids": ids, "labels": ids}], batch_size=None)  # type: ignore[arg-type]
    said = r"the keys \['input_ids', 'labels'\], without branch_ids.*PreferenceDataModule"
    with pytest.raises(DataError, match=said):
        make_trainer().fit(kind(spec), plain)
    rows = PreferenceDataModule(
        RowsSource(tiny_preferences(8)), tokenizer=spec.name, batch_size=4, layout="rows"
    )
    with pytest.raises(DataError, match=r"'chosen_input_ids'.*Leave out layout: rows"):
        make_trainer().fit(kind(spec), rows)
    tensors = DataLoader(TensorDataset(ids), batch_size=2)
    with pytest.raises(DataError, match="a batch that is a list, without input_ids"):
        make_trainer().fit(kind(spec), tensors)


def test_errors_of_a_step_of_ones_own_stay_what_they_are(tiny_model_dir: Path) -> None:
    class Own(SupervisedModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"a": batch}["b"]

    spec = ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=2))
    with pytest.raises(KeyError, match="b"):
        make_trainer().fit(Own(spec), DataLoader([{"x": torch.ones(1)}], batch_size=None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (lambda: BackboneFinetuning(1), "BackboneFinetuning looks for layers before"),
        (
            lambda: ModelPruning("l1_unstructured", amount=0.3),
            "ModelPruning looks for layers before",
        ),
        (lambda: GradientAccumulationScheduler({0: 2}), r"Scheduler: PPO.*updates\.minibatches"),
    ],
)
def test_callbacks_that_would_do_nothing_are_refused_before_work_starts(
    callback: Callable[[], Callback], said: str, tiny_model_dir: Path
) -> None:
    module = make_ppo(tiny_model_dir)
    with pytest.raises(ConfigurationError, match=said):
        fit(module, tiny_model_dir, callbacks=[callback()])
    assert "backbone" not in module._modules


def test_finders_of_learning_rates(tiny_model_dir: Path, tmp_path: Path) -> None:
    spec = ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=2))
    with pytest.raises(ConfigurationError, match=r"LearningRateFinder .*takes several within"):
        fit(make_ppo(tiny_model_dir), tiny_model_dir, callbacks=[LearningRateFinder()])
    data = PreferenceDataModule(RowsSource(tiny_preferences(8)), tokenizer=spec.name, batch_size=4)
    trainer = make_trainer(default_root_dir=tmp_path, max_epochs=9)
    with pytest.raises(ConfigurationError, match=r"update_attr=False.*optimizer=lambda"):
        Tuner(trainer).lr_find(RewardModelModule(spec), datamodule=data)
    module = RewardModelModule(spec)
    trainer = make_trainer(default_root_dir=tmp_path, max_epochs=9)
    found = Tuner(trainer).lr_find(module, datamodule=data, num_training=8, update_attr=False)
    assert found is not None
    assert len(found.results["lr"]) == 8
    trainer.fit(module, data)  # as if nothing had been tried
    assert trainer.global_step == 18


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gradient_clip_val": 0.5}, r"gradient_clip_val=0.5: PPO.*updates.max_grad_norm"),
        (
            {"accumulate_grad_batches": 2},
            r"accumulate_grad_batches=2: PPO.*updates.microbatch_tokens",
        ),
    ],
)
def test_options_of_automatic_steps_have_a_place_of_their_own_in_policies(
    options: dict[str, Any], said: str, tiny_model_dir: Path
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        fit(make_ppo(tiny_model_dir), tiny_model_dir, **options)
