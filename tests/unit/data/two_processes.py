"""Run as a script: trains, validates and predicts on two gloo processes; each writes what it saw to a directory."""

import json
import sys
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from lightning.pytorch import Trainer

from lit_rlhf.data import PreferenceDataModule, RowsSource
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import RewardModelModule
from lit_rlhf.testing import make_tokenizer, tiny_preferences, write_tiny_model
from tests.unit.data.test_resuming import Recorder, SaveAt


def make(batch_size: int, cache_dir: str) -> PreferenceDataModule:
    return PreferenceDataModule(
        RowsSource(tiny_preferences(23)),
        val=RowsSource(tiny_preferences(9, seed=1)),
        tokenizer=make_tokenizer(),
        batch_size=batch_size,
        seed=2,
        cache_dir=cache_dir,
    )


class TwoRecorder(Recorder):
    """Writes what it saw, for the test to read."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__()
        self.path, self.name = path, name

    def on_fit_end(self) -> None:
        seen: dict[str, Any] = {"seen": self.seen, "evaluated": self.evaluated}
        (self.path / f"{self.name}{self.global_rank}.json").write_text(json.dumps(seen))


def two(directory: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_epochs=2,
        num_sanity_val_steps=0,
        default_root_dir=directory,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )


def fit(
    directory: Path, name: str, *, save: bool = False, resume: bool = False, **options: Any
) -> None:
    ckpt = directory / "stop.ckpt"
    trainer = two(directory, callbacks=[SaveAt(ckpt, 0, 2)] if save else [], **options)
    data = make(2, str(directory / "cache"))
    trainer.fit(
        TwoRecorder(directory, name), data, ckpt_path=ckpt if resume else None, weights_only=True
    )


def undivided(directory: Path) -> None:
    """A loader that was made before there were two processes."""
    model = str(write_tiny_model(directory / "model"))
    rows = RowsSource(tiny_preferences(8))
    data = PreferenceDataModule(rows, tokenizer=model, cache_dir=str(directory / "cache"))
    data.prepare_data()
    data.setup("fit")
    try:
        two(directory).fit(RewardModelModule(ModelSpec(name=model)), data.train_dataloader())
    except Exception as error:  # noqa: BLE001 - what the launcher makes of it
        (directory / "undivided.txt").write_text(str(error))


def by_hand(fabric: Fabric, directory: Path) -> None:
    data = make(2, str(directory / "cache"))
    data.prepare_data()
    data.setup("fit")
    loader = fabric.setup_dataloaders(data.train_dataloader())
    seen = [batch["index"].tolist() for batch in loader]
    (directory / f"by_hand{fabric.global_rank}.json").write_text(json.dumps(seen))


def main(directory: Path) -> None:
    Fabric(accelerator="cpu", devices=2, strategy="ddp_fork").launch(by_hand, directory)
    fit(directory, "injecting", use_distributed_sampler=True, save=True)
    fit(directory, "leaving", use_distributed_sampler=False)
    fit(directory, "resumed", use_distributed_sampler=True, resume=True)
    undivided(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
