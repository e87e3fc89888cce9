"""`python -m benchmarks.seeds --output runs/seeds` runs every method with every seed and writes the table."""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

from benchmarks.seeds.runs import METHODS, Budget, Runs, markdown, one_thread, summarize
from lit_rlhf.demo.config import DemoConfig
from lit_rlhf.demo.stages import Stages
from lit_rlhf.internals.lightning import silence_noise


def main(args: Sequence[str] | None = None) -> None:
    """Train initial policy and reward model where missing, then the methods; show and write the table."""
    options = _parse(args)
    silence_noise()
    root: Path = options.output
    stages = Stages(root, DemoConfig(), options.world_seed)
    if not stages.initial.is_dir():
        stages.supervised()
    if not stages.reward_model.is_dir():
        stages.reward()
    budget = Budget(iterations=options.iterations, heldout_prompts=options.heldout_prompts)
    runs = Runs(stages, budget)
    wanted = list(product(options.methods, range(options.seeds)))
    rows = []
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), initializer=one_thread) as pool:
        for row in pool.map(runs.measure, *zip(*wanted, strict=True)):
            rows.append(row)
            _write(root, rows, budget)
    print(markdown(rows, budget))


def _write(root: Path, rows: list[dict[str, float | str | bool]], budget: Budget) -> None:
    """After each run, so that what was measured outlives a run that is cut."""
    result = {"budget": vars(budget), "methods": summarize(rows), "runs": rows}
    (root / "seeds.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (root / "seeds.md").write_text(markdown(rows, budget), encoding="utf-8")


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    budget = Budget()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds", description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="directory; initial policy and reward model stay there",
    )
    parser.add_argument(
        "--seeds", type=int, default=10, help="runs of each method, seeds 0, 1, ..."
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with one thread")
    parser.add_argument("--iterations", type=int, default=budget.iterations)
    parser.add_argument("--heldout_prompts", type=int, default=budget.heldout_prompts)
    parser.add_argument(
        "--world_seed",
        type=int,
        default=0,
        help="of the data, the initial policy and the reward model",
    )
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
