"""Time to the same reward: PPO, GRPO and online DPO here beside TRL's, on film reviews that people rated.

    python -m benchmarks.time_to_reward --work runs/time_to_reward --root runs/human_sentiment
    python -m benchmarks.time_to_reward --work runs/time_to_reward --markdown docs/RESULTS.md

Both sides have the same initial policy, reward model, prompts, dtype, LoRA (with the same first weights), completions
an iteration, KL coefficient and grid of learning rates, which is tried on the first seed; the other seeds go at the
rate that was best for their side. Each run is a process of its own with one thread; the sides take turns.
Adapters are kept every few iterations with the seconds of training so far, and one process judges them all afterwards
(`judging.py`). Runs and judgements that are there are kept. With `--markdown` nothing is run: the table and curves of
what is there are written.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, product
from pathlib import Path
from random import Random

from benchmarks.comparison.ledger import Ledger
from benchmarks.comparison.machine import CPUINFO, cpu_model, fast_dtype
from benchmarks.human_sentiment.measures import INITIAL
from benchmarks.markdown import insert
from benchmarks.peers.environments import TRL, TRL_PPO
from benchmarks.peers.processes import Run, measure
from benchmarks.time_to_reward.judging import judge_all
from benchmarks.time_to_reward.race import Race
from benchmarks.time_to_reward.report import (
    OURS,
    THEIRS,
    Curves,
    Key,
    best_rate,
    draw,
    read,
    report,
)
from lit_rlhf.models import load_reward_model
from lit_rlhf.models.export import export_reward

METHODS: dict[str, dict[str, int]] = {
    "grpo": {"batch": 8, "num_samples": 4},
    "ppo": {"batch": 32, "epochs": 2, "minibatches": 2},
    "online_dpo": {"batch": 16, "num_samples": 2},
}
"""Each makes 32 completions an iteration."""
RATES = (3e-4, 1e-3, 1e-4)
SEEDS = (0, 1, 2)
ITERATIONS = {OURS: 32, THEIRS: 16}
"""Ours goes on for longer, and still ends sooner: what is compared is seconds."""


def tuning(methods: Sequence[str], rates: Sequence[float], seed: int) -> Iterator[Key]:
    """Each rate from one seed; sides by turns."""
    for rate, method, side in product(rates, methods, (OURS, THEIRS)):
        yield method, rate, seed, side


def racing(
    methods: Sequence[str], rates: Sequence[float], seeds: Sequence[int], curves: Curves
) -> Iterator[Key]:
    """The other seeds, each side at the rate that was best for it; without any that was judged, at the first."""
    for seed, method, side in product(seeds, methods, (OURS, THEIRS)):
        yield method, best_rate(curves, method, side) or rates[0], seed, side


def prepare(work: Path, root: Path, reward: Path, seeds: Sequence[int]) -> None:
    """The reward model as both sides read it, and each seed's prompts."""
    if not (work / "reward").is_dir():
        model = load_reward_model(reward, dtype=fast_dtype(), base=str(root / INITIAL))
        export_reward(model, work / "reward", merge=True)
    lines = (root / "data" / "prompts_train.jsonl").read_text(encoding="utf-8").splitlines(True)
    for seed in seeds:
        Random(seed).shuffle(shuffled := lines.copy())
        (work / f"prompts-{seed}.jsonl").write_text("".join(shuffled), encoding="utf-8")


def run(work: Path, root: Path, point: Key, quick: bool) -> None:
    """One run, unless it is there."""
    method, rate, seed, side = point
    name = f"{method}-{rate:g}-{seed}-{side}"
    race = Race(
        workload=method,
        model=str(root / INITIAL),
        data=str(work / f"prompts-{seed}.jsonl"),
        reward_model=str(work / "reward"),
        steps=2 if quick else ITERATIONS[side],
        lr=rate,
        dtype=fast_dtype(),
        threads=1,
        seed=seed,
        out=str(work / "adapters" / name),
        every=1 if quick else 2,
        new_tokens=8 if quick else 32,
        **METHODS[method],
    )
    python: str | Path = sys.executable
    if side == THEIRS:
        environment = TRL_PPO if method == "ppo" else TRL
        home = work.parent if quick else work
        python = environment.python(home)
        if not python.exists():
            python = environment.make(home)

    def afresh() -> Run:
        # Of a broken run: its adapters, and what was said of them.
        shutil.rmtree(race.out, ignore_errors=True)
        command = [python, "-m", f"benchmarks.time_to_reward.{side}", race.dumps()]
        return measure(command, log=work / "logs" / f"{name}.log", threads=1, timeout=6 * 3600)

    done = Ledger(work / "runs").get(name, asdict(race), afresh)
    last = done.result["marks"][-1]
    print(f"{name}: {last['iteration']} iterations in {last['cpu']:.0f} CPU seconds", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--work", type=Path, default=Path("runs/time_to_reward"))
    parser.add_argument("--root", type=Path, default=Path("runs/human_sentiment"))
    parser.add_argument("--reward", type=Path, help="default: <root>/reward/export")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, metavar="RATE")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no run after so many"
    )
    parser.add_argument(
        "--quick", action="store_true", help="two short iterations each: that everything runs"
    )
    parser.add_argument(
        "--no-judge", action="store_true", help="leave judging to `judging.py`, beside or later"
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write what is there; run nothing"
    )
    options = parser.parse_args()
    work, root = options.work.resolve(), options.root.resolve()
    work = work / "quick" if options.quick else work
    if options.markdown is None:
        work.mkdir(parents=True, exist_ok=True)
        reward = (options.reward or root / "reward" / "export").resolve()
        prepare(work, root, reward, options.seeds)
        end = time.monotonic() + 60 * options.minutes
        first, *others = options.seeds

        def carry_out(points: Iterable[Key]) -> None:
            for point in points:
                if time.monotonic() < end:
                    run(work, root, point, options.quick)
            if not options.no_judge:
                judge_all(work, root, 32 if options.quick else 256)

        carry_out(tuning(options.methods, options.rates, first))
        carry_out(racing(options.methods, options.rates, others, read(work)))
        return
    curves = read(work)
    draw(curves, options.markdown.parent / "time_to_reward.svg")
    about = cpu_model(CPUINFO.read_text(encoding="utf-8"))
    first, *others = SEEDS
    methods = list(METHODS)
    planned = chain(tuning(methods, RATES, first), racing(methods, RATES, others, curves))
    iterations = {key: ITERATIONS[key[-1]] for key in planned}
    insert(options.markdown, "time-to-reward", report(curves, about, iterations))


if __name__ == "__main__":
    main()
