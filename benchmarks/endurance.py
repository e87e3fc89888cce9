"""Whether a long run grows: memory, descriptors, threads and files of many iterations of the shipped PPO configuration.

    python benchmarks/endurance.py --iterations 2000

A tiny random policy with a tiny reward model on its base, through every callback of `configs/policy/ppo_lora.yaml`:
what is kept by mistake shows, arithmetic hardly does. Prints a row each twentieth of the run, and the least-squares
slope of resident memory over its second half.
"""

import argparse
import ctypes
import gc
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlhf import from_config
from lit_rlhf.testing.tiny import write_tiny_world

_PER_EPOCH = 15  # iterations: 61 of 64 prompts, 4 a batch


class Growth(Callback):
    """Keeps (iteration, MiB resident, open descriptors, threads, files of the run) each so many iterations."""

    def __init__(self, every: int, directory: Path) -> None:
        self.every, self.directory = every, directory
        self.rows: list[tuple[int, float, int, int, int]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure."""
        done = trainer.current_epoch * _PER_EPOCH + batch_idx + 1
        if done % self.every:
            return
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps isn't growth
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = sum(path.is_file() for path in self.directory.rglob("*"))
        row = (
            done,
            pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            sum(1 for _ in Path("/proc/self/fd").iterdir()),
            threading.active_count(),
            files,
        )
        self.rows.append(row)
        print(
            "iteration {}: {:.1f} MiB, {} descriptors, {} threads, {} files".format(*row),
            flush=True,
        )


def slope(rows: list[tuple[int, float, int, int, int]]) -> float:
    """KiB per iteration over the second half of the run: before, caches fill."""
    late = np.array(rows[len(rows) // 2 :], dtype=float)
    return float(np.polyfit(late[:, 0], late[:, 1], 1)[0] * 1024)


def run(iterations: int, directory: Path) -> Growth:
    """Train a reward model for two steps, then a policy against it."""
    write_tiny_world(directory)
    model, tiny = f"{directory}/tiny-model", "overlays/tiny"
    common = [tiny, f"model.backbone.name={model}", f"data.tokenizer={model}"]
    trainer, module, data = from_config(
        "reward",
        *common,
        f"run_dir={directory}/reward",
        f"data.train.path={directory}/preferences.jsonl",
    )
    trainer.fit(module, datamodule=data)
    trainer, module, data = from_config(
        "ppo",
        *common,
        f"run_dir={directory}/run",
        f"data.train.path={directory}/prompts.jsonl",
        f"model.reward.path={directory}/reward/export",
        "model.sampling.max_new_tokens=8",
        "trainer.limit_train_batches=1.0",
        f"trainer.max_epochs={-(-iterations // _PER_EPOCH)}",
    )
    growth = Growth(max(iterations // 20, 1), directory / "run")
    trainer.callbacks.insert(0, growth)
    trainer.fit(module, datamodule=data)
    return growth


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows = run(arguments.iterations, Path(directory)).rows
    print(
        f"{slope(rows):+.2f} KiB an iteration over the second half; descriptors {rows[0][2]} to {rows[-1][2]}"
    )


if __name__ == "__main__":
    main()
