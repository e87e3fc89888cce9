"""One configuration, trained for two steps in a process of its own: its resident memory, less what was held before.

Before, a tiny model is trained in the same way, so that libraries have loaded what they use.

python -m benchmarks.estimate.measured <number of the case>
"""

import gc
import sys
import tempfile
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from benchmarks.estimate.cases import CASES, Case
from benchmarks.peers.processes import report
from benchmarks.quiet import quiet_trainer
from benchmarks.workloads.growth_point import forget_resident_peak, resident_peak
from lit_rlhf.estimate.cards import resident
from lit_rlhf.internals.lightning import silence_noise
from lit_rlhf.modules import PolicyModule
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.testing.tokenizers import make_tokenizer
from lit_rlhf.types import BranchedBatch

STEPS = 2
TINY = {"hidden_size": 72, "intermediate_size": 72, "num_hidden_layers": 1, "vocab_size": 512}


class NoneEndsEarly(Callback):
    """No token ends a completion, so that rows are as long as the estimate takes them."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first rollout."""
        pl_module.backbone.eos_token_ids = ()


def batch(case: Case, module: RLHFModule) -> dict[str, Any]:
    """As a DataModule would make it."""
    load = case.workload
    made = load.batch(load.prompts)
    if not isinstance(module, PolicyModule):
        return {name: value for name, value in made.items() if name != "ref_logprobs"}
    prompts = {
        name: made[name][:, : load.prompt_tokens] for name in BranchedBatch.__required_keys__
    }
    return prompts | {"index": made["index"], "columns": {}}


def train(case: Case, module: RLHFModule) -> None:
    """Train a module on batches of the case."""
    trainer = quiet_trainer(*([NoneEndsEarly()] if isinstance(module, PolicyModule) else []))
    loader: Any = DataLoader([batch(case, module)] * STEPS, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader)


def main() -> None:
    case = list(CASES.values())[int(sys.argv[1])]
    torch.set_num_threads(1)
    silence_noise()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as directory:
        make_tokenizer().save_pretrained(directory)
        train(case, case.module(directory, **TINY))
        gc.collect()
        before = resident()
        forget_resident_peak()
        train(case, case.module(directory))
    report({"bytes": resident_peak() - before, "before": before})


if __name__ == "__main__":
    main()
