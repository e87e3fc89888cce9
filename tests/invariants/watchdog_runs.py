"""One process of a run in which one of two stops, or goes astray. Not a test: `test_watchdog.py` starts it."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lit_rlhf.callbacks import Watchdog
from lit_rlhf.rewards import LengthReward
from lit_rlhf.types import Completions, Scores
from tests.invariants.forked_runs import make_trainer
from tests.invariants.resume_runs import make_data, make_module


class Astray(LengthReward):
    """In the second iteration, on one rank, does something else than scoring."""

    calls = 0
    does = "nothing"

    def score(self, completions: Completions) -> Scores:
        self.calls += 1
        if self.calls == 2 and self.does == "stop":
            time.sleep(2.0)  # it has said where it is
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.calls == 2 and self.does.startswith("sleep"):
            time.sleep(float(self.does.removeprefix("sleep ")))
        return super().score(completions)


def train(run: dict[str, Any], rank: int) -> None:
    """One process of one run."""
    world = Path(run["world"])
    module = make_module("grpo", world / "tiny-model")
    module.reward = reward = Astray(target=4.0)
    if rank == run["rank"]:
        reward.does = run["does"]
    trainer = make_trainer(
        run,
        max_epochs=1,
        limit_train_batches=3,
        limit_val_batches=0,
        enable_checkpointing=False,
        callbacks=[Watchdog(**run["watchdog"])],
    )
    trainer.fit(module, datamodule=make_data("grpo", world, 2, workers=0))


if __name__ == "__main__":
    train(json.loads(sys.argv[1]), int(os.environ["RANK"]))
