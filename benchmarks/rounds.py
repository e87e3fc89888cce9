"""Rounds of sampling and judging against one round with as many labels, in the demo's world, where the judge is exact.

    lit-rlhf demo --output runs/demo
    python -m benchmarks.rounds runs/demo

`IterativeDPO` from the demo's initial policy: of four samples of each prompt the world's utility picks best and worst,
and says how probable that preference is (`SoftLabelDPO`; hard labels of an exact judge pull without end). Arms differ
in how the prompts are parted, in beta and in the loss alone. Two rounds towards one reward end where one with half of
beta would, so that is an arm, too. A policy is judged by the world's utility of what it writes to held-out prompts, and
by its KL to the initial policy. What is done isn't done again; what was measured stands in `rounds.json` of an arm's
directory, `<demo>/rounds/<lr>/<seed>/<arm>`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.markdown import spelled, table
from lit_rlhf.cli import main as lit_rlhf
from lit_rlhf.demo.config import DemoConfig
from lit_rlhf.rounds import Evaluation, InProcess, IterativeDPO, RewardFeedback, Rounds, Training
from lit_rlhf.testing import write_jsonl

JUDGE = {"class_path": "FunctionReward", "init_args": {"function": f"{__file__}:utility"}}
SAMPLE = {"sampling": {"max_new_tokens": DemoConfig().policy.max_new_tokens}, "batch_size": 128}
_PROMPTS, _SAMPLES, _HELDOUT, _BATCH = 2048, 4, 512, 16


@dataclass(frozen=True)
class Arm:
    """How the same number of labels is spent.

    Attributes:
        rounds: Among how many the prompts are parted.
        beta: Of DPO.
        start: What each round starts from, and its reference: "previous", or "initial" on all labels so far.
        loss: "SoftLabelDPO", or "DPO" on hard labels.
    """

    rounds: int
    beta: float = 0.5
    start: str = "previous"
    loss: str = "SoftLabelDPO"


ARMS = {
    "one": Arm(1),
    "two": Arm(2),
    "three": Arm(3),
    "four": Arm(4),
    "two-initial": Arm(2, start="initial"),
    "one-half-beta": Arm(1, 0.25),
    "one-hard": Arm(1, 0.1, loss="DPO"),
    "two-hard": Arm(2, 0.1, loss="DPO"),
}


def utility(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The world's utility of texts: the judge."""
    return DemoConfig().world.world.utilities(prompts, responses)


def training(arm: Arm, lr: float, demo: Path) -> Training:
    """DPO of all weights, on the labels of the round or of all so far."""
    options = {
        "trainer": {"accelerator": "cpu", "logger": False},
        "model": {
            "init_args": {
                "backbone": {"dtype": "float32"},
                "loss": {"class_path": arm.loss, "init_args": {"beta": arm.beta}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr}},
            }
        },
        "data": {
            "init_args": {"val_fraction": 0, "batch_size": _BATCH, "cache_dir": str(demo / "cache")}
        },
    }
    training = Training(["preference/dpo_full"], options, start=arm.start)
    if arm.start == "initial":
        training.data = "all"
    return training


def prompts_of(arm: Arm, seed: int) -> list[list[dict[str, str]]]:
    """The prompts of each round; together the same for all arms of a seed."""
    rows = DemoConfig().world.prompts((seed + 1) * _PROMPTS)[seed * _PROMPTS :]
    each = -(-_PROMPTS // arm.rounds)
    return [rows[i * each : (i + 1) * each] for i in range(arm.rounds)]


def run(arm: Arm, lr: float, seed: int, demo: Path, directory: Path) -> dict[str, Any]:
    """The rounds of an arm; measures of the initial policy and of the last one, and how many labels it had."""
    parts = prompts_of(arm, seed)
    files = [
        str(write_jsonl(directory / f"prompts-{i}.jsonl", part)) for i, part in enumerate(parts)
    ]
    others = DemoConfig().world.prompts(_HELDOUT, "heldout")
    heldout = str(write_jsonl(directory / "heldout.jsonl", others))
    rounds = Rounds(
        str(demo / "sft" / "export"),
        IterativeDPO(RewardFeedback(files, JUDGE, _SAMPLES, SAMPLE), training(arm, lr, demo)),
        directory,
        arm.rounds,
        Evaluation(heldout, JUDGE, sample=SAMPLE),
        seed=seed,
        runner=InProcess(lit_rlhf),
    )
    rounds.run()
    record = rounds.record["rounds"]
    labels = sum(record[str(i)]["measures"]["rows"] for i in range(arm.rounds))
    last = record[str(arm.rounds - 1)]["measures"]
    return {"first": record["initial"]["measures"], "last": last, "labels": labels}


def shown(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: mean and deviation over seeds."""
    first = next(iter(found.values()))
    parts = {"initial": [{**run["first"], "labels": 0} for run in first]}
    parts |= {
        name: [{**run["last"], "labels": run["labels"]} for run in runs]
        for name, runs in found.items()
    }
    lines = []
    for name, rows in parts.items():
        cells = [spelled([row[key] for row in rows]) for key in ("score", "kl", "finished")]
        lines.append([name, f"{fmean(row['labels'] for row in rows):.0f}", *cells])
    return table(["arm", "labels", "utility", "KL, nats", "finished"], lines)


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounds", description=__doc__)
    parser.add_argument("demo", type=Path, help="directory that `lit-rlhf demo` wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--lr", type=float, default=3e-4, help="of DPO")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.arms}
    for seed in options.seeds:
        for name, runs in found.items():
            directory = options.demo / "rounds" / f"{options.lr:g}" / str(seed) / name
            runs.append(run(ARMS[name], options.lr, seed, options.demo, directory))
            print(seed, name, runs[-1], flush=True)
    print(shown(found))


if __name__ == "__main__":
    main()
