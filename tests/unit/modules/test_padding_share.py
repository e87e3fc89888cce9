"""What is logged of a batch before its step."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lit_rlhf.data import DemonstrationDataModule, RowsSource
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import SupervisedModule
from lit_rlhf.testing import tiny_demonstrations


class Shares(Callback):
    """Notes what was logged and what the batch holds."""

    def __init__(self) -> None:
        self.logged: list[float] = []
        self.real: list[float] = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: object,
        outputs: object,
        batch: dict[str, Tensor],
        at: int,
    ) -> None:
        self.logged.append(float(trainer.callback_metrics["train/padding_share"]))
        ids = batch["branch_ids"]
        self.real.append(int((ids == -1).sum()) / ids.numel())


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_the_share_of_padding_is_logged(tmp_path: Path, tiny_model_dir: Path) -> None:
    data = DemonstrationDataModule(
        RowsSource(tiny_demonstrations(12)),
        tokenizer=str(tiny_model_dir),
        batch_size=4,
        bucket_batches=1,
        pad_to_multiple_of=8,
        cache_dir=str(tmp_path / "cache"),
    )
    seen = Shares()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[seen],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(SupervisedModule(ModelSpec(name=str(tiny_model_dir))), data)
    assert len(seen.real) == 3
    assert all(0 < share < 1 for share in seen.real)
    torch.testing.assert_close(seen.logged, seen.real)
