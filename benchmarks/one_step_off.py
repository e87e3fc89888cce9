"""What samples of a step before do to learning: the reward of policies with and without `Ahead`, at equal steps.

    lit-rlhf demo --output runs/demo
    python -m benchmarks.one_step_off runs/demo

The demo's initial policy learns from its reward model by leave-one-out, with truncated importance weights; the only
difference is `staleness`. Sampling elsewhere is a copy of the policy in this process, so that both see the same
arithmetic and nothing but the weights that draw differs. Judged on held-out prompts after the last step, and by the
scores of training in its second half. Points that are there already, in `<demo>/one_step_off.json`, are kept.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR

from benchmarks.best_of_n import data_of, gold
from benchmarks.quiet import quiet_trainer
from lit_rlhf.demo.config import DemoConfig
from lit_rlhf.demo.stages import complete_heldout
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.modules import RLOOPolicyModule, Updates
from lit_rlhf.objectives import FixedKL, TruncatedImportance
from lit_rlhf.rewards import ModelReward
from lit_rlhf.rollout import Ahead, NativeEngine, RolloutRequest, Sampling
from lit_rlhf.types import Generation


class OnACopy(NativeEngine):
    """Samples from a copy of the policy, with its weights of when sampling began."""

    own_arithmetic = False
    samples_elsewhere = True

    def begin(self, backbone: Backbone, request: RolloutRequest) -> Callable[[], Generation]:
        """See `RolloutEngine.begin`."""
        return partial(NativeEngine().sample, copy.deepcopy(backbone), request)


class Watch(Callback):
    """Keeps what each iteration logged of scores and staleness."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.staleness: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Look."""
        metrics = trainer.callback_metrics
        self.scores.append(float(metrics["train/objective/scores"]))
        self.staleness.append(float(metrics.get("train/rollout/staleness", 0.0)))


def trained(
    staleness: int, demo: Path, seed: int, iterations: int, heldout: int = 512
) -> dict[str, Any]:
    """Train a policy and judge it."""
    start = time.process_time()
    module = RLOOPolicyModule(
        ModelSpec(name=str(demo / "sft" / "export")),
        ModelReward(str(demo / "reward" / "export"), normalize=True),
        engine=Ahead(OnACopy(), staleness),
        recompute_logprobs=True,
        importance_correction=TruncatedImportance(),
        sampling=Sampling(max_new_tokens=DemoConfig().policy.max_new_tokens),
        missing_eos_penalty=1.0,
        num_samples=4,
        kl=FixedKL(0.5),
        updates=Updates(epochs=2, minibatches=2),
        optimizer=partial(AdamW, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.95)),
        lr_scheduler=partial(
            LinearLR, end_factor=0.1, start_factor=1.0, total_iters=4 * iterations
        ),
        seed=seed,
    )
    watch = Watch()
    trainer = quiet_trainer(watch, limit_val_batches=0)
    data = data_of(demo, seed, iterations, heldout)
    trainer.fit(module, datamodule=data)
    assert watch.staleness == [0.0, *[float(staleness)] * (iterations - 1)]
    trainer.limit_val_batches = 1
    rows, kl = complete_heldout(trainer, module, data)
    return {
        "staleness": staleness,
        "seed": seed,
        "reward": fmean(row["score"] for row in rows),
        "gold": fmean(gold(rows)),
        "kl": kl,
        "scores": watch.scores,
        "seconds": time.process_time() - start,
    }


def summary(points: list[dict[str, Any]]) -> str:
    """Markdown: mean and deviation over seeds, and of the differences between runs of one seed their standard error."""
    lines = [
        "| staleness | KL | reward model | gold | score of training, second half |",
        "|---|---|---|---|---|",
    ]
    runs = [
        {p["seed"]: _measures(p) for p in points if p["staleness"] == staleness}
        for staleness in (0, 1)
    ]
    for staleness, found in enumerate(runs):
        columns = list(zip(*found.values(), strict=True))
        cells = [f"{fmean(column):.3f} ± {stdev(column):.3f}" for column in columns]
        lines.append(f"| {staleness} | {' | '.join(cells)} |")
    now, late = runs
    gaps = [
        [a - b for a, b in zip(late[seed], now[seed], strict=True)]
        for seed in now.keys() & late.keys()
    ]
    columns = list(zip(*gaps, strict=True))
    cells = [f"{fmean(c):+.3f} ± {stdev(c) / len(c) ** 0.5:.3f}" for c in columns]
    return "\n".join([*lines, f"| 1 less 0, {len(gaps)} seeds | {' | '.join(cells)} |"])


def _measures(point: dict[str, Any]) -> list[float]:
    scores = point["scores"]
    return [point["kl"], point["reward"], point["gold"], fmean(scores[len(scores) // 2 :])]


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_step_off", description=__doc__)
    parser.add_argument("demo", type=Path, help="directory that `lit-rlhf demo` wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--iterations", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = options.demo / "one_step_off.json"
    points: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    done = {(p["staleness"], p["seed"]) for p in points}
    for seed in options.seeds:
        for staleness in (0, 1):
            if (staleness, seed) not in done:
                points.append(trained(staleness, options.demo, seed, options.iterations))
                file.write_text(json.dumps(points) + "\n", encoding="utf-8")
                print(points[-1], flush=True)
    print(summary(points))


if __name__ == "__main__":
    main()
