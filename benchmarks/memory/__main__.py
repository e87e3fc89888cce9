"""Peak memory of PPO: four roles on one nf4 base, beside TRL 1.12.0, which loads a model for each.

    python -m benchmarks.memory --model <SmolLM2-135M> --reviews <pairs_train.jsonl> --work runs/memory

Both take 32 prompts of film reviews an iteration, sample 32 new tokens for each, and make two optimizer steps over them with
LoRA r=16 on all linear layers. Each run is a fresh process; what counts is the highest resident memory of the process and its
children together, imports included. The numbers don't depend on how busy the machine is.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks.memory.one_base import write_reward_adapter
from benchmarks.peers.environments import TRL_PPO, versions_in
from benchmarks.peers.processes import measure
from benchmarks.workloads.rows import write_reward_model, write_rows
from benchmarks.workloads.settings import Settings

GOAL = 0.45
OURS = ("torch", "transformers", "peft", "bitsandbytes", "lightning")


def main(args: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    options = _parse(args)
    work: Path = options.work.resolve()
    write_rows(options.reviews, options.model, work)
    settings = Settings(
        workload="ppo",
        model=str(options.model.resolve()),
        data=str(work / "short.jsonl"),
        batch=32,
        steps=options.steps,
        epochs=2,
        threads=options.threads,
    )
    ours = replace(settings, reward_model=str(work / "reward-adapter"))
    theirs = replace(settings, reward_model=str(work / "classifier"))
    write_reward_adapter(ours, work / "reward-adapter")
    write_reward_model(options.model, work / "classifier")
    peer = TRL_PPO.make(options.peers)
    one_base = [sys.executable, "-m", "benchmarks.memory.one_base", ours.dumps()]
    commands = {
        "one nf4 base, four roles, `gradient_checkpointing: true`": [*one_base, "recompute"],
        "one nf4 base, four roles": one_base,
        "TRL 1.12.0": [peer, "-m", "benchmarks.workloads.trl_ppo", theirs.dumps()],
    }
    peaks: dict[str, list[int]] = {name: [] for name in commands}
    for run in range(options.runs):
        for number, (name, command) in enumerate(commands.items()):
            log = work / f"log-{number}-{run}.txt"
            peaks[name].append(measure(command, log=log, threads=options.threads, timeout=options.timeout).peak_rss)
            (work / "peaks.json").write_text(json.dumps(peaks), encoding="utf-8")
    print(table(peaks))
    print(f"\nOurs: {versions_in(sys.executable, OURS)}; theirs: {TRL_PPO.versions(options.peers)}.")


def table(peaks: dict[str, list[int]]) -> str:
    """Markdown: the median peak of each, its range, and its share of the last one's.

    Args:
        peaks: Bytes of each run, by name; the last is what the others are held to.
    """
    medians = {name: median(runs) / 2**20 for name, runs in peaks.items()}
    *_, yardstick = medians.values()
    lines = ["| | peak, MiB | range over runs | share |", "|---|---|---|---|"]
    for name, runs in peaks.items():
        spread = f"{min(runs) / 2**20:.0f}–{max(runs) / 2**20:.0f}"
        lines.append(f"| {name} | {medians[name]:.0f} | {spread} | {medians[name] / yardstick:.2f} |")
    first, *_ = medians.values()
    lines.append(f"\nGoal: at most {GOAL}. {'Met' if first <= GOAL * yardstick else '**Missed**'}.")
    return "\n".join(lines)


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory of SmolLM2-135M")
    parser.add_argument("--reviews", type=Path, required=True, help="pairs_train.jsonl of benchmarks/human_sentiment")
    parser.add_argument("--work", type=Path, required=True, help="directory for rows, reward models and logs")
    parser.add_argument("--peers", type=Path, default=Path("runs/peers"), help="where TRL's environment is, or is made")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="iterations of each run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for one run")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
