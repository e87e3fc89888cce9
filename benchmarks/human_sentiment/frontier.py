"""Reward against KL: DPO, IPO, KTO, SimPO and PPO from one initial policy, on one reward model, over a sweep of beta.

    DTYPE=float32 python -m benchmarks.human_sentiment.frontier --root runs/human_sentiment --figure docs/frontier.svg

Needs `sft/export` and `reward/export` of run.sh under the root; makes the pairs (`policy_pairs.py`) if they are missing. Each
method and beta is one run of `lit-rlhf fit` in a process of its own, under `<root>/frontier/<method>-<beta>`, and is judged as
`evaluate.py` does: gold is vaderSentiment, KL is to the initial policy. What is there already is kept: start it again, with
other betas, and it goes on. Writes `<root>/frontier/frontier.json` and the figure.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from benchmarks.human_sentiment import policy_pairs
from benchmarks.human_sentiment.measures import INITIAL, Measurement, judge_samples, load_policy, summarize
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.rewards import ModelReward

HERE = Path(__file__).parent
Point = dict[str, Any]


class Method(NamedTuple):
    """A curve of the figure.

    Attributes:
        files: Configurations, the later ones on top.
        betas: Strengths of the regularization, from weak to strong.
        option: What of the model sets it.
        colour: Of the curve.
        margin: Another option, and its ratio to beta.
    """

    files: tuple[str, ...]
    betas: tuple[float, ...]
    option: str
    colour: str
    margin: tuple[str, float] | None = None


_LOSS = "loss.init_args"
METHODS = {
    "dpo": Method(("pairs", "dpo"), (0.03, 0.1, 0.3, 1.0), f"{_LOSS}.beta", "#2f6db5"),
    "ipo": Method(("pairs", "ipo"), (0.03, 0.1, 0.3, 1.0), f"{_LOSS}.tau", "#2c8a57"),
    "kto": Method(("pairs", "kto"), (0.03, 0.1, 0.3, 1.0), f"{_LOSS}.beta", "#d97724"),
    "simpo": Method(("pairs", "simpo"), (1.0, 2.0, 5.0, 10.0), f"{_LOSS}.beta", "#8458b3", (f"{_LOSS}.gamma", 0.5)),
    "ppo": Method(("ppo",), (0.02, 0.05, 0.15, 0.5), "kl.init_args.coef", "#b5342f"),
}


def command(name: str, beta: float, directory: Path, root: Path, dtype: str, steps: int | None) -> list[str]:
    """The command line of one run; its configuration, with paths under the root, is written to its directory."""
    method = METHODS[name]
    words = [sys.executable, "-m", "lit_rlhf", "fit"]
    for file in method.files:
        text = (HERE / f"{file}.yaml").read_text(encoding="utf-8")
        for place in ("runs/human_sentiment/direct", "runs/human_sentiment/ppo-0"):
            text = text.replace(place, str(directory))
        copy = directory / f"{file}.yaml"
        copy.write_text(text.replace("runs/human_sentiment", str(root)), encoding="utf-8")
        words += ["-c", str(copy)]
    options = {method.option: beta, "backbone.dtype": dtype}
    if method.margin is not None:
        options[method.margin[0]] = beta * method.margin[1]
    words += [f"--model.init_args.{option}={value}" for option, value in options.items()]
    return words if steps is None else [*words, f"--trainer.limit_train_batches={steps}"]


def train(name: str, beta: float, root: Path, dtype: str, steps: int | None) -> Path:
    """Run it, unless it was; its directory, relative to the root, with `seconds.txt` once it is done."""
    place = Path("frontier") / f"{name}-{beta:g}"
    directory = root / place
    done = directory / "seconds.txt"
    if not done.exists():
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("checkpoints/*"):  # of a run that was broken off
            old.unlink()
        start = time.perf_counter()
        with (directory / "log.txt").open("w") as log:
            words = command(name, beta, directory, root, dtype, steps)
            code = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        if code != 0:
            raise SystemExit(f"{name} at beta {beta:g} ended with code {code}; see {directory / 'log.txt'}")
        done.write_text(f"{time.perf_counter() - start:.1f}\n")
    return place


def measure(points: list[Point], measurement: Measurement, dtype: DTypeName, keep: Callable[[], None]) -> None:
    """Add `summary` and `samples` to the points that lack them, and keep what there is after each."""
    missing = [point for point in points if "summary" not in point]
    if not missing:
        return
    root = measurement.root
    initial = load_policy(root, str(INITIAL), dtype)
    reward = ModelReward(
        str(root / "reward" / "export"), share_base=False, normalize=True, dtype=dtype, base=str(root / INITIAL)
    )
    reward.attach(initial)
    judge = SentimentIntensityAnalyzer()
    for point in missing:
        is_initial = point["method"] == "initial"
        policy = initial if is_initial else load_policy(root, f"{point['run']}/checkpoints", dtype)
        samples = measurement.sample(policy, initial, {"reward": reward})
        judge_samples(samples, judge)
        point["summary"] = summarize(samples, ["reward"])
        point["samples"] = [{"prompt": row["prompt"], "response": row["response"]} for row in samples[:6]]
        found = point["summary"]
        print(
            f"{point['method']:8} {point['beta'] or '':6} gold {found['gold']:.3f} ± {found['gold_stderr']:.3f}"
            f"   KL {found['kl']:.2f} ± {found['kl_stderr']:.2f}   distinct-2 {found['distinct_2']:.3f}",
            flush=True,
        )
        keep()


def draw(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Gold against KL, a curve for each method, as SVG; beta stands beside each point."""
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for name, method in METHODS.items():
        curve = sorted(
            (point for point in points if point["method"] == name), key=lambda point: cast("float", point["beta"])
        )
        if not curve:
            continue
        x, y, dx, dy = ([p["summary"][key] for p in curve] for key in ("kl", "gold", "kl_stderr", "gold_stderr"))
        axes.errorbar(x, y, dy, dx, label=name.upper(), color=method.colour, marker="o", ms=4, lw=1.4, elinewidth=0.7)
        for point, here in zip(curve, zip(x, y, strict=True), strict=True):
            axes.annotate(
                f"{point['beta']:g}", here, (4, 4), textcoords="offset points", fontsize=7, color=method.colour
            )
    start = next(point["summary"] for point in points if point["method"] == "initial")
    axes.errorbar([0], [start["gold"]], [start["gold_stderr"]], label="initial policy", color="black", marker="s", ms=5)
    axes.set_xlabel("KL to the initial policy, nats per completion")
    axes.set_ylabel("gold score (vaderSentiment)")
    axes.grid(color="#e8eaee")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})


def sweep(root: Path, runs: Mapping[str, Sequence[float]], dtype: str, steps: int | None) -> list[Point]:
    """Train what is missing; a point for the initial policy and for each run, in the order of `METHODS`."""
    if not (root / policy_pairs.FILE).exists():
        policy_pairs.main(["--root", str(root), "--dtype", dtype])
    points: list[Point] = [{"method": "initial", "beta": None, "run": str(INITIAL)}]
    for name, betas in runs.items():
        for beta in betas:
            place = train(name, beta, root, dtype, steps)
            seconds = float((root / place / "seconds.txt").read_text())
            print(f"{place}: {seconds:.0f} s", flush=True)
            points.append({"method": name, "beta": beta, "run": str(place), "seconds": seconds})
    return points


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
    parser = argparse.ArgumentParser(description="Reward against KL of direct methods and PPO over a sweep of beta.")
    parser.add_argument("--root", type=Path, default=Path("runs/human_sentiment"), help="where run.sh put everything")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--betas", type=float, nargs="*", help="instead of each method's own")
    parser.add_argument("--steps", type=int, help="training batches of a run; default: as in the files")
    parser.add_argument("--prompts", type=int, default=Measurement.prompts, help="held-out prompts to complete")
    parser.add_argument("--figure", type=Path, help="default: <root>/frontier/frontier.svg")
    options = parser.parse_args(args)
    root: Path = options.root
    dtype = cast("DTypeName", os.environ.get("DTYPE", "bfloat16"))
    runs = {name: options.betas or METHODS[name].betas for name in options.methods}
    points = sweep(root, runs, dtype, options.steps)
    file = root / "frontier" / "frontier.json"
    setting = {"prompts": options.prompts, "dtype": dtype}
    remembered(points, file, setting)

    def keep() -> None:
        file.write_text(json.dumps({"setting": setting, "points": points}, indent=2) + "\n", encoding="utf-8")

    measure(points, Measurement(root, prompts=options.prompts), dtype, keep)
    keep()
    draw(points, options.figure or root / "frontier" / "frontier.svg")


if __name__ == "__main__":
    main()
