"""Reward against KL: offline and online methods and best-of-n from one initial policy, on one reward model.

    python -m benchmarks.human_sentiment.frontier --root runs/human_sentiment --jobs 2 --figure docs/frontier.svg

Needs `sft/export` and `reward/export` of run.sh under the root; makes the pairs (`policy_pairs.py`) if they are
missing. Each method and beta is one run of `lit-rlhf fit` in a process of its own with one thread, under
`<root>/frontier/<method>-<beta>`, and is judged as `evaluate.py` does: gold is vaderSentiment, KL is to the initial
policy. Best-of-n isn't trained: of n completions of the initial policy the reward model picks one, and the KL is the
upper bound log n - (n-1)/n, which is met where no two score alike. What is there already is kept: start it again, with
other betas, and it goes on. Writes `<root>/frontier/frontier.json` and the figure.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from matplotlib.figure import Figure
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from benchmarks.comparison.machine import fast_dtype
from benchmarks.human_sentiment.measures import (
    INITIAL,
    Measurement,
    Samples,
    attached_reward,
    best_of_n,
    judge_samples,
    load_policy,
    summarize,
)
from benchmarks.human_sentiment.sweep import METHODS, place_of, train_all
from lit_rlhf.functional import best_of_n_kl
from lit_rlhf.models.specs import DTypeName

Point = dict[str, Any]
BEST_OF_N = "best_of_n"
BEST_OF = (2, 4, 8, 16)


def points_of(
    runs: Mapping[str, Sequence[float]], best_of: Sequence[int], root: Path
) -> list[Point]:
    """A point for the initial policy, for each run and for each n, not yet measured."""
    points: list[Point] = [{"method": "initial", "beta": None, "run": str(INITIAL)}]
    for name, betas in runs.items():
        for place, beta in ((place_of(name, beta), beta) for beta in betas):
            seconds = float((root / place / "seconds.txt").read_text())
            points.append({"method": name, "beta": beta, "run": str(place), "seconds": seconds})
    return points + [
        {"method": BEST_OF_N, "beta": n, "run": f"{INITIAL}, best of {n}"} for n in best_of
    ]


def measure(
    points: list[Point], measurement: Measurement, dtype: DTypeName, keep: Callable[[], None]
) -> None:
    """Add `summary` and `samples` to the points that lack them, and keep what there is after each."""
    missing = [point for point in points if "summary" not in point]
    if not missing:
        return
    root = measurement.root
    initial = load_policy(root, str(INITIAL), dtype)
    rewards = {"reward": attached_reward(root / "reward" / "export", initial, root, dtype)}
    judge = SentimentIntensityAnalyzer()

    @cache
    def candidates() -> Samples:
        return measurement.sample(initial, initial, rewards, num_samples=max(BEST_OF))

    for point in missing:
        if point["method"] == BEST_OF_N:
            samples = best_of_n(candidates(), max(BEST_OF), point["beta"])
        else:
            is_initial = point["method"] == "initial"
            policy = (
                initial if is_initial else load_policy(root, f"{point['run']}/checkpoints", dtype)
            )
            samples = measurement.sample(policy, initial, rewards)
        judge_samples(samples, judge)
        found = summarize(samples, ["reward"])
        if point["method"] == BEST_OF_N:
            found |= {"kl": best_of_n_kl(point["beta"]), "kl_stderr": 0.0}
        point["summary"] = found
        point["samples"] = [
            {"prompt": row["prompt"], "response": row["response"]} for row in samples[:6]
        ]
        print(
            f"{point['method']:10} {point['beta'] or '':6} gold {found['gold']:.3f} ± {found['gold_stderr']:.3f}"
            f"   KL {found['kl']:.2f} ± {found['kl_stderr']:.2f}   distinct-2 {found['distinct_2']:.3f}",
            flush=True,
        )
        keep()


def draw(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Gold against KL, a curve for each method, as SVG; beta (of best-of-n: n) stands beside each point."""
    figure = Figure(figsize=(7.6, 5.0), layout="constrained")
    axes = figure.add_subplot()
    curves = {name: (method.label, method.colour, "-") for name, method in METHODS.items()}
    for name, (label, colour, line) in (
        curves | {BEST_OF_N: ("best of n", "#777777", "--")}
    ).items():
        curve = sorted(
            (point for point in points if point["method"] == name),
            key=lambda point: cast("float", point["beta"]),
        )
        if not curve:
            continue
        x, y, dx, dy = (
            [p["summary"][key] for p in curve] for key in ("kl", "gold", "kl_stderr", "gold_stderr")
        )
        marker = "o" if name in _offline() else "^"
        style = {"color": colour, "ls": line, "marker": marker, "ms": 4, "lw": 1.4}
        axes.errorbar(x, y, dy, dx, label=label, elinewidth=0.7, **style)
        small = {"textcoords": "offset points", "fontsize": 7, "color": colour}
        for point, here in zip(curve, zip(x, y, strict=True), strict=True):
            axes.annotate(f"{point['beta']:g}", here, (4, 4), **small)
    start = next(point["summary"] for point in points if point["method"] == "initial")
    style = {"label": "initial policy", "color": "black", "marker": "s", "ms": 5}
    axes.errorbar([0], [start["gold"]], [start["gold_stderr"]], **style)
    axes.set_xlabel("KL to the initial policy, nats per completion")
    axes.set_ylabel("gold score (vaderSentiment)")
    axes.grid(color="#e8eaee")
    told = "circles offline, triangles online"
    axes.legend(frameon=False, ncols=2, fontsize=8, title=told, title_fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _offline() -> set[str]:
    return {name for name, method in METHODS.items() if "pairs" in method.files}


def remembered(points: list[Point], file: Path, setting: Mapping[str, Any]) -> None:
    """Take over what was measured before in the same setting."""
    if not file.exists():
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    if before["setting"] != setting:
        return
    known = {(point["run"], point.get("seconds")): point for point in before["points"]}
    for point in points:
        point.update(known.get((point["run"], point.get("seconds")), {}))


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Reward against KL of offline and online methods over a sweep of beta."
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("runs/human_sentiment"),
        help="where run.sh put everything",
    )
    parser.add_argument(
        "--methods",
        nargs="*",
        default=[*METHODS, BEST_OF_N],
        choices=[*METHODS, BEST_OF_N],
        metavar="METHOD",
    )
    parser.add_argument(
        "--betas", type=float, nargs="*", help="instead of each trained method's own"
    )
    parser.add_argument(
        "--steps", type=int, help="training batches of a run; default: as in the files"
    )
    parser.add_argument(
        "--prompts", type=int, default=Measurement.prompts, help="held-out prompts to complete"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with one thread")
    parser.add_argument("--figure", type=Path, help="default: <root>/frontier/frontier.svg")
    options = parser.parse_args(args)
    root: Path = options.root
    dtype = cast("DTypeName", fast_dtype())
    runs = {
        name: options.betas or METHODS[name].betas for name in options.methods if name != BEST_OF_N
    }
    train_all(runs, root, dtype, options.steps, options.jobs)
    points = points_of(runs, BEST_OF if BEST_OF_N in options.methods else (), root)
    file = root / "frontier" / "frontier.json"
    setting = {"prompts": options.prompts, "dtype": dtype}
    remembered(points, file, setting)

    def keep() -> None:
        file.write_text(
            json.dumps({"setting": setting, "points": points}, indent=2) + "\n", encoding="utf-8"
        )

    measure(points, Measurement(root, prompts=options.prompts), dtype, keep)
    keep()
    draw(points, options.figure or root / "frontier" / "frontier.svg")


if __name__ == "__main__":
    main()
