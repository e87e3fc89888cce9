"""What EarlyStopping and ModelCheckpoint watch: a name that no module logs is said before work is lost."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger

from lit_rlhf.data import PreferenceDataModule, RowsSource
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import PreferenceModule, RewardModelModule
from lit_rlhf.objectives import KTO
from lit_rlhf.testing import tiny_preferences
from tests.unit.modules.policies import (
    fit as fit_policy,
    make_ppo,
    make_trainer,
    prompt_loader,
)
from tests.unit.modules.test_preference import fit as fit_batches, singles


def counting(batches: list[int]) -> Callback:
    """Notes the batches that are done; of Lightning's own callbacks, for one from elsewhere might log more."""
    return LambdaCallback(on_train_batch_end=lambda *args: batches.append(args[-1]))


def run(model: Path, *callbacks: Callback, val: bool = True, **options: Any) -> Trainer:
    module = RewardModelModule(ModelSpec(name=str(model), lora=LoraSpec(rank=2)))
    data = PreferenceDataModule(
        RowsSource(tiny_preferences(8)),
        val=RowsSource(tiny_preferences(4, seed=1)) if val else None,
        tokenizer=str(model),
        batch_size=4,
    )
    if any(isinstance(each, ModelCheckpoint) for each in callbacks):
        options["enable_checkpointing"] = True
    trainer = make_trainer(callbacks=list(callbacks), **options)
    trainer.fit(module, data)
    return trainer


@pytest.mark.parametrize("watch", [EarlyStopping, ModelCheckpoint])
@pytest.mark.parametrize("sanity", [2, 0])
def test_a_name_of_validation_is_refused_before_training(
    watch: Any, sanity: int, tiny_model_dir: Path, tmp_path: Path
) -> None:
    batches: list[int] = []
    options = {"dirpath": tmp_path} if watch is ModelCheckpoint else {}
    with pytest.raises(ConfigurationError, match=r"'val_loss'.*not logged.*val/") as refusal:
        run(
            tiny_model_dir,
            watch(monitor="val_loss", **options),
            counting(batches),
            num_sanity_val_steps=sanity,
        )
    assert not batches
    if sanity:
        assert "Did you mean 'val/loss'? There are: val/accuracy, " in str(refusal.value)


def test_a_name_of_training_is_refused_after_the_first_batch(tiny_model_dir: Path) -> None:
    batches: list[int] = []
    with pytest.raises(ConfigurationError, match=r"'train/acc'.*Did you mean 'train/accuracy'"):
        run(tiny_model_dir, EarlyStopping("train/acc"), counting(batches))
    assert batches in ([], [0])
    with pytest.raises(ConfigurationError, match=r"'reward_mean'.*not logged.*'reward'"):
        fit_policy(
            make_ppo(tiny_model_dir), tiny_model_dir, callbacks=[EarlyStopping("reward_mean")]
        )


def test_nothing_to_validate_is_said(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing is validated: give the data a `val`"):
        run(tiny_model_dir, EarlyStopping("val/loss"), val=False)
    with pytest.raises(ConfigurationError, match="limit_val_batches"):
        run(tiny_model_dir, EarlyStopping("val/loss"), limit_val_batches=0)


class LogsMore(Callback):
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            pl_module.log("val/bleu", 1.0)


def test_what_a_part_of_ones_own_may_log_is_a_warning(tiny_model_dir: Path) -> None:
    with pytest.warns(UserWarning, match=r"'val/bleu'.*Unless a part of your own logs it"):
        trainer = run(tiny_model_dir, EarlyStopping("val/bleu", mode="max"), LogsMore())
    assert trainer.current_epoch == 1
    with (
        pytest.warns(UserWarning, match="'val_bleu'"),
        pytest.raises(RuntimeError, match="not available"),  # Lightning's own, as it was
    ):
        run(tiny_model_dir, EarlyStopping("val_bleu"), LogsMore())


def test_names_that_are_logged_pass(tiny_model_dir: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*trainer.callbacks watches")
        trainer = run(
            tiny_model_dir,
            EarlyStopping("val/accuracy", mode="max"),
            EarlyStopping("train/loss"),
            EarlyStopping("anything", strict=False),
            ModelCheckpoint(tmp_path / "a", monitor="val/loss"),
            ModelCheckpoint(tmp_path / "b", monitor="step", mode="max"),
            LearningRateMonitor("step"),
            ModelCheckpoint(tmp_path / "c", monitor="lr-AdamW/model", mode="max"),
            logger=CSVLogger(tmp_path),
            max_epochs=2,
        )
    assert trainer.current_epoch == 2
    assert all(list((tmp_path / name).glob("*.ckpt")) for name in "abc")


def test_a_metric_that_the_first_rows_lack_may_come_later(tiny_model_dir: Path) -> None:
    chosen = singles(label=singles()["index"] >= 0)
    rejected = singles(label=singles()["index"] < 0)
    module = PreferenceModule(
        ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=2)), KTO(), reference="live"
    )
    trainer, _ = fit_batches(
        module, [chosen, rejected], callbacks=[EarlyStopping("train/rewards/rejected")]
    )
    assert "train/rewards/rejected" in trainer.callback_metrics


def test_the_worst_taken_for_the_best_is_said(tiny_model_dir: Path) -> None:
    with pytest.warns(UserWarning, match=r"'val/accuracy'.*mode='min'.*Set mode='max'"):
        run(tiny_model_dir, EarlyStopping("val/accuracy"))
    with pytest.warns(UserWarning, match=r"'val/loss'.*mode='max'.*Set mode='min'"):
        run(tiny_model_dir, EarlyStopping("val/loss", mode="max"))


def test_frozen_parts_and_a_trainer_used_again_are_no_news(
    tiny_model_dir: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    module = make_ppo(tiny_model_dir)
    module.reward.layer = torch.nn.Linear(1, 1).requires_grad_(False).eval()
    trainer = fit_policy(module, tiny_model_dir)
    trainer.validate(module, prompt_loader(tiny_model_dir))
    assert "in eval mode" not in "".join(str(each.message) for each in recwarn)
    assert "will override existing callbacks" not in caplog.text
    module.backbone.eval()
    with pytest.warns(UserWarning, match="in eval mode"):
        fit_policy(module, tiny_model_dir)
