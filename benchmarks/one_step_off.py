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

from benchmarks.best_of_n import data_of, judged, module_of
from benchmarks.markdown import spelled, table
from benchmarks.quiet import History, quiet_trainer
from lit_rlhf.demo.stages import complete_heldout
from lit_rlhf.models import Backbone
from lit_rlhf.objectives import TruncatedImportance
from lit_rlhf.rollout import Ahead, NativeEngine, RolloutRequest
from lit_rlhf.types import Generation


class OnACopy(NativeEngine):
    """Samples from a copy of the policy, with its weights of when sampling began."""

    own_arithmetic = False
    samples_elsewhere = True

    def begin(self, backbone: Backbone, request: RolloutRequest) -> Callable[[], Generation]:
        """See `RolloutEngine.begin`."""
        return partial(NativeEngine().sample, copy.deepcopy(backbone), request)


def trained(staleness: int, demo: Path, seed: int, iterations: int) -> dict[str, Any]:
    """Train a policy and judge it."""
    start = time.process_time()
    module = module_of(
        "RLOO",
        0.5,
        demo,
        seed,
        iterations,
        engine=Ahead(OnACopy(), staleness),
        recompute_logprobs=True,
        importance_correction=TruncatedImportance(),
    )
    history = History()
    trainer = quiet_trainer(history, limit_val_batches=0)
    data = data_of(demo, seed, iterations)
    trainer.fit(module, datamodule=data)
    if staleness:
        late = [0.0, *[float(staleness)] * (iterations - 1)]
        assert history.of("train/rollout/staleness") == late
    trainer.limit_val_batches = 1
    rows, kl = complete_heldout(trainer, module, data)
    return {
        "staleness": staleness,
        "seed": seed,
        **judged(rows),
        "kl": kl,
        "scores": history.of("train/objective/scores"),
        "seconds": time.process_time() - start,
    }


def summary(points: list[dict[str, Any]]) -> str:
    """Markdown: mean and deviation over seeds, and of the differences between runs of one seed their standard error."""
    runs = [
        {p["seed"]: _measures(p) for p in points if p["staleness"] == staleness}
        for staleness in (0, 1)
    ]
    rows = [
        [str(staleness), *(spelled(column, ".3f") for column in zip(*found.values(), strict=True))]
        for staleness, found in enumerate(runs)
    ]
    now, late = runs
    gaps = [
        [a - b for a, b in zip(late[seed], now[seed], strict=True)]
        for seed in now.keys() & late.keys()
    ]
    columns = list(zip(*gaps, strict=True))
    cells = [f"{fmean(c):+.3f} ± {stdev(c) / len(c) ** 0.5:.3f}" for c in columns]
    rows.append([f"1 less 0, {len(gaps)} seeds", *cells])
    heads = ["staleness", "KL", "reward model", "gold", "score of training, second half"]
    return table(heads, rows)


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
