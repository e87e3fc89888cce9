"""Three rounds against one with as many labels and steps: does it pay to sample anew from what was learned?

    python -m benchmarks.human_sentiment.rounds --seeds 0 1 2 --arms three one

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
from typing import Any

import yaml

from benchmarks.human_sentiment.evaluate import evaluate_policies
from benchmarks.human_sentiment.measures import Measurement
from benchmarks.human_sentiment.prepare import write_jsonl
from benchmarks.markdown import spelled, table
from lit_rlhf.files import read_lines

HERE = Path(__file__).parent
ARMS = {"one": 1, "weak": 1, "two": 2, "three": 3}
"""Rounds, among which the prompts are parted. "weak" is one with half of beta, since two rounds towards the same reward
end where it would."""
COLUMNS = ("gold", "gold_positive", "reward", "kl", "distinct_2", "tokens", "finished")


def options_of(arm: str, seed: int, root: Path) -> dict[str, Any]:
    """The options of a run.

    Args:
        arm: One of `ARMS`.
        seed: Of prompts, samples and training.
        root: Directory of the runs.
    """
    text = (HERE / "rounds.yaml").read_text(encoding="utf-8")
    options: dict[str, Any] = yaml.safe_load(text.replace("runs/human_sentiment", str(root)))
    place = f"{root}/rounds/{seed}"
    options |= {"seed": seed, "rounds": ARMS[arm], "run_dir": f"{place}/{arm}"}
    method = options["method"]["init_args"]
    prompts = [f"{place}/{arm}-{number}.jsonl" for number in range(ARMS[arm])]
    method["feedback"]["init_args"]["prompts"] = prompts
    if arm == "weak":
        method["training"]["options"]["model"]["init_args"]["loss"]["init_args"]["beta"] /= 2
    return options


def write_prompts(arm: str, seed: int, root: Path, count: int) -> None:
    """The prompts of each round; together the same for all arms of a seed, drawn from those of training."""
    rows = read_lines(root / "data" / "prompts_train.jsonl")
    drawn, each = random.Random(seed).sample(rows, count), -(-count // ARMS[arm])
    for number in range(ARMS[arm]):
        part = drawn[number * each : (number + 1) * each]
        write_jsonl(root / "rounds" / str(seed) / f"{arm}-{number}.jsonl", part)


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


def shown(found: Mapping[str, Mapping[str, float]], arms: Mapping[str, Sequence[str]]) -> str:
    """Markdown: mean and deviation over seeds."""
    columns = [column for column in COLUMNS if column in found["initial"]]
    rows = []
    for name, policies in ({"initial": ["initial"]} | dict(arms)).items():
        values = [[found[policy][column] for policy in policies] for column in columns]
        rows.append([name, *(spelled(each, ".3f") for each in values)])
    return table(["policy", *columns], rows)


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Rounds against one with as many labels.")
    parser.add_argument("--root", type=Path, default=Path("runs/human_sentiment"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--prompts", type=int, default=288, help="of all rounds together")
    parser.add_argument("--reward", default="reward/export", help="reward model, under the root")
    options = parser.parse_args(args)
    root: Path = options.root
    for seed in options.seeds:
        for arm in options.arms:
            write_prompts(arm, seed, root, options.prompts)
            run(arm, seed, root)
            print(f"seed {seed}, {arm}: done", flush=True)
    lines = {
        arm: [
            f"rounds/{seed}/{arm}/round-{ARMS[arm] - 1:02d}/policy/export" for seed in options.seeds
        ]
        for arm in options.arms
    }
    policies = [policy for each in lines.values() for policy in each]
    reward = {"reward": path} if (path := root / options.reward).exists() else {}
    file = root / "rounds" / "rounds.json"
    found = json.loads(file.read_text("utf-8")) if file.exists() else {}
    if new := [policy for policy in policies if policy not in found]:
        results = evaluate_policies(Measurement(root), new, reward)
        found |= {name: summary for name, (summary, _) in results.items()}
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(shown(found, lines))


if __name__ == "__main__":
    main()
