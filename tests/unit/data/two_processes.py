"""Run as a script: trains, validates and predicts on two gloo processes; each writes what it saw to a directory."""

import json
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lit_rlhf.data import PreferenceDataModule, RowsSource
from lit_rlhf.testing import make_tokenizer, tiny_preferences
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


def fit(
    directory: Path, name: str, *, save: bool = False, resume: bool = False, **options: Any
) -> None:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    ckpt = directory / "stop.ckpt"
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_epochs=2,
        num_sanity_val_steps=0,
        default_root_dir=directory,
        callbacks=[SaveAt(ckpt, 0, 2)] if save else [],
        **quiet,
        **options,
    )
    data = make(2, str(directory / "cache"))
    trainer.fit(
        TwoRecorder(directory, name), data, ckpt_path=ckpt if resume else None, weights_only=True
    )


def main(directory: Path) -> None:
    fit(directory, "injecting", use_distributed_sampler=True, save=True)
    fit(directory, "leaving", use_distributed_sampler=False)
    fit(directory, "resumed", use_distributed_sampler=True, resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
