"""Peak memory of PPO: four roles on one nf4 base, beside TRL 1.12.0, which loads a model for each.

    python -m benchmarks.memory --model <SmolLM2-135M> --reviews <lists_train.jsonl> --work runs/memory

Both take 32 prompts of film reviews an iteration, sample 32 new tokens for each, and make two optimizer steps over them
with LoRA r=16 on all linear layers. Each run is a fresh process; what counts is the highest resident memory of the
process and its children together, imports included. The numbers don't depend on how busy the machine is.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median

from benchmarks.markdown import table
from benchmarks.memory.one_base import spec
from benchmarks.peers.environments import TRL_PPO, versions_in
from benchmarks.peers.processes import measure
from benchmarks.workloads.rows import write_reward_adapter, write_reward_model, write_rows
from benchmarks.workloads.settings import Settings

GOAL = 0.45
SETTINGS = {"`gradient_checkpointing: true`": ["recompute"], "`gradient_checkpointing: false`": []}
"""TRL's default and ours, with the words that the scripts understand."""
Peaks = dict[str, dict[str, list[int]]]
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
    write_reward_adapter(spec(ours), work / "reward-adapter")
    write_reward_model(options.model, work / "classifier")
    peer = TRL_PPO.make(options.peers)
    own = [sys.executable, "-m", "benchmarks.memory.one_base", ours.dumps()]
    other = [peer, "-m", "benchmarks.workloads.trl_ppo", theirs.dumps()]
    sides = {"one nf4 base, four roles": own, "TRL 1.12.0": other}
    peaks: Peaks = {setting: {side: [] for side in sides} for setting in SETTINGS}
    for run in range(options.runs):
        settled = enumerate(SETTINGS.items())
        for (number, (setting, words)), (side, command) in product(settled, sides.items()):
            log = work / f"log-{number}-{side.split()[0]}-{run}.txt"
            limits = {"threads": options.threads, "timeout": options.timeout}
            measured = measure([*command, *words], log=log, **limits)
            peaks[setting][side].append(measured.peak_rss)
            (work / "peaks.json").write_text(json.dumps(peaks), encoding="utf-8")
    print(shown(peaks))
    print(
        f"\nOurs: {versions_in(sys.executable, OURS)}; theirs: {TRL_PPO.versions(options.peers)}."
    )


def shown(peaks: Peaks) -> str:
    """Markdown: for each setting the median peak of both sides, the range over runs, and ours as a share of theirs.

    Args:
        peaks: Bytes of each run, by setting and side, ours first. The first setting is held to the goal.
    """
    rows, shares = [], []
    for setting, sides in peaks.items():
        medians = [median(runs) / 2**20 for runs in sides.values()]
        shares.append(medians[0] / medians[1])
        ranges = [f"{min(runs) / 2**20:.0f}–{max(runs) / 2**20:.0f}" for runs in sides.values()]
        cells = [
            f"{middle:.0f} MiB ({spread})" for middle, spread in zip(medians, ranges, strict=True)
        ]
        rows.append([setting, *cells, f"{shares[-1]:.2f}"])
    verdict = "Met" if shares[0] <= GOAL else "**Missed**"
    sides = next(iter(peaks.values()))
    goal = f"Goal of the first row: at most {GOAL}. {verdict}."
    return f"{table(['', *sides, 'share'], rows)}\n\n{goal}"


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory of SmolLM2-135M")
    parser.add_argument(
        "--reviews",
        type=Path,
        required=True,
        help="lists_train.jsonl of benchmarks/human_sentiment",
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="directory for rows, reward models and logs"
    )
    parser.add_argument(
        "--peers",
        type=Path,
        default=Path("runs/peers"),
        help="where TRL's environment is, or is made",
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="iterations of each run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for one run")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
