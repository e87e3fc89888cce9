"""Two rounds against one with as many labels: does it pay to sample anew from what was learned?

    python -m benchmarks.human_sentiment.rounds --seeds 0 1 2

Needs `sft/export`. The judge that labels is vaderSentiment; what people would say of the outcome is told by the reward
model of their ratings, where there is one; the loop never sees it. Each run is `lit-rlhf iterate` with `rounds.yaml`
under `<root>/rounds/<seed>/<arm>`, and what is done isn't done again. Writes `<root>/rounds/rounds.json`.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from benchmarks.human_sentiment.evaluate import evaluate_policies
from benchmarks.human_sentiment.measures import Measurement
from benchmarks.human_sentiment.prepare import write_jsonl

HERE = Path(__file__).parent
PER_ROUND = 256
POLICIES = {
    "two rounds, after the first": "two/round-00",
    "two rounds": "two/round-01",
    "one round": "one/round-00",
    "one round, half of beta": "weak/round-00",
}
"""What is measured, and where it lies."""
COLUMNS = ("gold", "gold_positive", "reward", "kl", "distinct_2", "tokens", "finished")


def options_of(arm: str, seed: int, root: Path) -> dict[str, Any]:
    """The options of a run.

    Args:
        arm: "two" rounds; "one" with the prompts of both; or "weak", that with half of beta, since two rounds towards
            the same reward end where one with half of beta would.
        seed: Of prompts, samples and training.
        root: Directory of the runs.
    """
    text = (HERE / "rounds.yaml").read_text(encoding="utf-8")
    text = text.replace("runs/human_sentiment/rounds/0", f"{root}/rounds/{seed}")
    options: dict[str, Any] = yaml.safe_load(text.replace("runs/human_sentiment", str(root)))
    options["seed"] = seed
    if arm != "two":
        options |= {"rounds": 1, "run_dir": f"{root}/rounds/{seed}/{arm}"}
        method = options["method"]["init_args"]
        method["feedback"]["init_args"]["prompts"] = f"{root}/rounds/{seed}/both.jsonl"
    if arm == "weak":
        method["training"]["options"]["model"]["init_args"]["loss"]["init_args"]["beta"] /= 2
    return options


def write_prompts(root: Path, seed: int, per_round: int) -> None:
    """Prompts of each round, drawn from those of training, and of both rounds together."""
    file = root / "data" / "prompts_train.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    drawn = random.Random(seed).sample(rows, 2 * per_round)
    parts = {"first": drawn[:per_round], "second": drawn[per_round:], "both": drawn}
    for name, part in parts.items():
        write_jsonl(root / "rounds" / str(seed) / f"{name}.jsonl", part)


def run(arm: str, seed: int, root: Path) -> None:
    """`lit-rlhf iterate` in a process with one thread, unless its policy is there."""
    options = options_of(arm, seed, root)
    directory = Path(options["run_dir"])
    if (directory / f"round-{options['rounds'] - 1:02d}" / "policy" / "export").exists():
        return
    file = directory.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(options), encoding="utf-8")
    words = [sys.executable, "-m", "lit_rlhf", "iterate", "-c", str(file)]
    with directory.with_suffix(".log").open("w") as log:
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env=one_thread, check=True)


def places(arms: Sequence[str], seeds: Sequence[int]) -> dict[str, list[str]]:
    """The policies of each line of the table, one of each seed, under the root."""
    return {
        name: [f"rounds/{seed}/{place}/policy/export" for seed in seeds]
        for name, place in POLICIES.items()
        if place.partition("/")[0] in arms
    }


def table(found: Mapping[str, Mapping[str, float]], lines: Mapping[str, Sequence[str]]) -> str:
    """Markdown: mean and deviation over seeds."""
    columns = [column for column in COLUMNS if column in found["initial"]]
    rows = ["| policy | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, policies in ({"initial": ["initial"]} | dict(lines)).items():
        values = [[found[policy][column] for policy in policies] for column in columns]
        cells = [
            f"{fmean(each):.3f}" + (f" ± {stdev(each):.3f}" if len(each) > 1 else "")
            for each in values
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Two rounds against one with as many labels.")
    parser.add_argument("--root", type=Path, default=Path("runs/human_sentiment"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["two", "one", "weak"])
    parser.add_argument("--per-round", type=int, default=PER_ROUND, help="prompts of a round")
    parser.add_argument("--reward", default="reward/export", help="reward model, under the root")
    options = parser.parse_args(args)
    root: Path = options.root
    for seed in options.seeds:
        write_prompts(root, seed, options.per_round)
        for arm in options.arms:
            run(arm, seed, root)
            print(f"seed {seed}, {arm}: done", flush=True)
    lines = places(options.arms, options.seeds)
    policies = [policy for each in lines.values() for policy in each]
    reward = {"reward": path} if (path := root / options.reward).exists() else {}
    results = evaluate_policies(Measurement(root), policies, reward)
    found = {name: summary for name, (summary, _) in results.items()}
    text = json.dumps(found, indent=2)
    (root / "rounds" / "rounds.json").write_text(text + "\n", encoding="utf-8")
    print(table(found, lines))


if __name__ == "__main__":
    main()
