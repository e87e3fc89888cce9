"""Everything in a row: prepare, SFT, reward model, PPO for each seed, evaluation.

    python -m benchmarks.human_sentiment.run --seeds 0 1 2

A step whose export is there already is not done again, so a run that was broken off goes on where it was. The configurations
are `sft.yaml`, `reward.yaml` and `ppo.yaml` beside this file; what is run for a seed is written to `<root>/configs`, and how
long each step took to `<root>/seconds.json`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT_IN_CONFIGS = "runs/human_sentiment"
SEED_LINES = ("seed_everything: 0", "seed: 0")


@dataclass(frozen=True)
class Step:
    """One `lit-rlhf fit`.

    Attributes:
        name: Directory of its results under the root.
        config: File beside this one.
        replace: Texts of the configuration and what stands in their place.
        seed: Of the run.
    """

    name: str
    config: str
    replace: Mapping[str, str]
    seed: int = 0

    def export(self, root: Path) -> Path:
        """Where the trained model is written."""
        return root / self.name / "export"

    def written_config(self, text: str, root: Path) -> str:
        """The configuration with the root, the seed and the step's own replacements put in."""
        for old, new in self.replace.items():
            if old not in text:
                raise ValueError(f"{self.config} has no {old!r}, which step {self.name} replaces by {new!r}.")
            text = text.replace(old, new)
        for line in SEED_LINES:
            text = text.replace(line, line.replace("0", str(self.seed)))
        return text.replace(ROOT_IN_CONFIGS, str(root))


def steps_for(seeds: Sequence[int], gold_reward: bool) -> list[Step]:
    """All fits in order; seeds vary PPO alone."""
    steps = [Step("sft", "sft.yaml", {}), Step("reward", "reward.yaml", {})]
    if gold_reward:
        here = {f"{ROOT_IN_CONFIGS}/reward": f"{ROOT_IN_CONFIGS}/gold_reward", "pairs_train": "gold_pairs_train"}
        steps.append(Step("gold_reward", "reward.yaml", here))
    return steps + [
        Step(f"ppo_seed{seed}", "ppo.yaml", {f"{ROOT_IN_CONFIGS}/ppo": f"{ROOT_IN_CONFIGS}/ppo_seed{seed}"}, seed)
        for seed in seeds
    ]


def fit(step: Step, root: Path) -> None:
    """Run a step, unless its export is there."""
    if step.export(root).exists():
        print(f"{step.name}: {step.export(root)} is there", flush=True)
        return
    config = root / "configs" / f"{step.name}.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(step.written_config((HERE / step.config).read_text(encoding="utf-8"), root), encoding="utf-8")
    call(["lit_rlhf", "fit", "-c", str(config)])


def call(module_and_args: Sequence[str]) -> None:
    """Run a module of this Python in a process of its own; its failure ends everything."""
    print(f"$ python -m {' '.join(module_and_args)}", flush=True)
    subprocess.run([sys.executable, "-m", *module_and_args], check=True)


def timed(root: Path, name: str, work: Callable[[], None]) -> None:
    """Do something and note its seconds, unless it was done before."""
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    path = root / "seconds.json"
    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if name not in known or seconds > 10:  # a step that was skipped takes no time
        known[name] = round(seconds, 1)
        path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="SFT, reward model and PPO on human ratings of film reviews, then evaluation."
    )
    parser.add_argument("--root", type=Path, default=Path(ROOT_IN_CONFIGS), help="where everything goes")
    parser.add_argument("--downloads", type=Path, help="package files fetched before")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of PPO")
    parser.add_argument(
        "--gold-reward", action="store_true", help="also train a reward model on other raters, as a judge"
    )
    options = parser.parse_args(args)
    root: Path = options.root
    downloads = ["--downloads", str(options.downloads)] if options.downloads else []
    root.mkdir(parents=True, exist_ok=True)
    module = "benchmarks.human_sentiment"
    timed(root, "prepare", lambda: call([f"{module}.prepare", "--root", str(root), *downloads]))
    steps = steps_for(options.seeds, options.gold_reward)
    for step in steps:
        timed(root, step.name, lambda step=step: fit(step, root))  # type: ignore[misc]
    policies = [f"--policy={step.name}={step.export(root)}" for step in steps if step.name.startswith("ppo")]
    timed(root, "evaluate", lambda: call([f"{module}.evaluate", "--root", str(root), *policies]))


if __name__ == "__main__":
    main()
