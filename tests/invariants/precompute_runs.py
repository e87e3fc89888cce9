"""Trains with references that were computed before, on two processes.

Not a test: `tests/unit/modules/test_precompute.py` starts it.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from lit_rlhf.modules import PreferenceModule
from tests.invariants.forked_runs import do, make_trainer
from tests.unit.modules.test_precompute import make_data, make_module


class Counting(PreferenceModule):
    """Counts the rows that the reference is run on."""

    rows = 0

    def reference_statistics(self, batch: Any) -> Any:
        self.rows += len(batch["input_ids"])
        return super().reference_statistics(batch)


def train(run: dict[str, Any], rank: int) -> None:
    """One process of one run."""
    model = Path(run["model"])
    module = make_module(model, run["reference"], "full")
    module.__class__ = Counting
    trainer = make_trainer(run, max_epochs=1)
    trainer.fit(module, datamodule=make_data(model, Path(run["cache"]), rows=11, batch_size=2))
    weights = {
        name: w.full_tensor() if isinstance(w, DTensor) else w
        for name, w in module.named_parameters()
    }
    kept = {
        name: weight.detach() for name, weight in weights.items() if name.startswith("backbone.")
    }
    torch.save({"rows": module.rows, "weights": kept}, f"rank-{rank}.pt")


if __name__ == "__main__":
    do(Path(sys.argv[1]), train)
