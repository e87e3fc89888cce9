"""Curves of what was run and judged, who came where how soon, as tables and a figure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import hypot
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.markdown import table
from benchmarks.time_to_reward.race import RUN

Key = tuple[str, float, int, str]
"""Method, learning rate, seed, side."""
OURS, THEIRS = "ours", "theirs"
NAMES = {"grpo": "GRPO", "ppo": "PPO", "online_dpo": "online DPO"}
PEERS = {"grpo": "TRL 1.16", "ppo": "TRL 1.12", "online_dpo": "TRL 1.16"}
GOALS = {"grpo": 5, "ppo": 4}
NEAR = 2
"""Iterations between two adapters that are kept."""
SLACK = 2.0
"""Standard errors by which a KL may be above the peer's and still count as no more."""


@dataclass(frozen=True)
class Point:
    """A policy after so many seconds of training; errors are standard errors over held-out prompts.

    `load` is the machine's load average at that time: above the number of cores, the wall tells little.
    """

    iteration: int
    wall: float
    cpu: float
    gold: float
    gold_error: float
    kl: float
    kl_error: float
    load: float = 1.0


Curve = list[Point]
Curves = Mapping[Key, Curve]


def read(work: Path) -> dict[Key, Curve]:
    """Of all runs under the work directory, as far as they came and were judged, from the initial policy on."""
    if not (work / "judged.json").is_file():
        return {}
    initial = json.loads((work / "judged.json").read_text(encoding="utf-8"))["initial"]
    curves = {}
    for file in sorted((work / "adapters").glob(f"*/{RUN}")):
        run, judged = json.loads(file.read_text(encoding="utf-8")), file.with_name("judged.json")
        if judged.is_file():
            found = json.loads(judged.read_text(encoding="utf-8"))
            marks = [mark for mark in run["marks"] if mark["file"] in found]
            start = _point({"iteration": 0, "wall": 0.0, "cpu": 0.0, "load": 1.0}, initial)
            race, side = run["race"], file.parent.name.split("-")[-1]
            key = (race["workload"], race["lr"], race["seed"], side)
            if marks:
                curves[key] = [start] + [_point(mark, found[mark["file"]]) for mark in marks]
    return curves


def _point(mark: Mapping[str, Any], judged: Mapping[str, float]) -> Point:
    clock = {name: mark[name] for name in ("iteration", "wall", "cpu", "load")}
    gold, kl = (judged["gold"], judged["gold_stderr"]), (judged["kl"], judged["kl_stderr"])
    return Point(**clock, gold=gold[0], gold_error=gold[1], kl=kl[0], kl_error=kl[1])


def smooth(curve: Curve) -> Curve:
    """Each but the first as the mean of itself and those at most `NEAR` iterations away.

    The highest of many noisy scores is an accident. Where few policies were judged yet, each stands for itself.
    """
    smoothed = curve[:1]
    for point in curve[1:]:
        near = [p for p in curve[1:] if abs(p.iteration - point.iteration) <= NEAR]
        gold, kl = fmean(p.gold for p in near), fmean(p.kl for p in near)
        smoothed.append(replace(point, gold=gold, kl=kl))
    return smoothed


def best(curve: Curve) -> Point:
    """Of the highest score, the initial policy aside."""
    return max(curve[1:], key=lambda point: point.gold)


def reach(curve: Curve, goal: Point) -> Point | None:
    """The first that scores as much as the goal at no more KL, or at KL that is more by less than `SLACK` errors."""
    return next(
        (
            point
            for point in curve[1:]
            if point.gold >= goal.gold
            and point.kl <= goal.kl + SLACK * hypot(point.kl_error, goal.kl_error)
        ),
        None,
    )


def at(curve: Curve, cpu: float) -> float:
    """The score after so many CPU seconds, on the line between two policies."""
    after = next(i for i, point in enumerate(curve) if point.cpu >= cpu)
    if after == 0:
        return curve[0].gold
    a, b = curve[after - 1 : after + 1]
    return a.gold + (b.gold - a.gold) * (cpu - a.cpu) / (b.cpu - a.cpu)


def best_rate(curves: Curves, method: str, side: str) -> float | None:
    """The learning rate whose best score is the highest on the first seed; None where nothing was judged."""
    of_side = [key for key in curves if key[::3] == (method, side)]
    first = min((seed for _, _, seed, _ in of_side), default=None)
    scores = {
        rate: best(smooth(curves[method, rate, seed, side])).gold
        for _, rate, seed, _ in of_side
        if seed == first
    }
    return max(scores, key=lambda rate: scores[rate], default=None)


def tuned(curves: Curves, method: str, side: str) -> dict[int, Curve]:
    """By seed, smoothed, at the side's best learning rate."""
    rate = best_rate(curves, method, side)
    return {
        seed: smooth(curve)
        for (name, lr, seed, who), curve in curves.items()
        if (name, lr, who) == (method, rate, side)
    }


RUNS = (
    "method", "side", "rate", "seed", "iterations judged", "CPU seconds each", "wall seconds each", "best score",
    "its KL", "after CPU seconds",
)  # fmt: skip
RACES = (
    "method", "seed", "TRL's best", "its KL", "its CPU seconds", "ours to the same", "our KL there",
    "times sooner, CPU", "wall", "goal", "after CPU seconds", "our score", "TRL's", "difference",
)  # fmt: skip


def report(curves: Curves, about: str, planned: Mapping[Key, int]) -> str:
    """Markdown: the figure, who was sooner, what each run reached, and what of the planned iterations wasn't run."""
    start = next(iter(curves.values()))[0]
    races = [
        row
        for method in NAMES
        for row in _races(method, tuned(curves, method, OURS), tuned(curves, method, THEIRS))
    ]
    missing = {
        name: [key[0] for key in planned if key not in curves].count(method)
        for method, name in NAMES.items()
    }
    told = ", ".join(f"{count} of {name}" for name, count in missing.items() if count)
    loads = [point.load for curve in curves.values() for point in curve[1:]]
    load = f"{min(loads):.1f} to {max(loads):.1f}"
    parts = [
        f"{about}; one thread. The machine's load average was {load}.",
        f"The initial policy scores {start.gold:.3f} ± {start.gold_error:.3f}.",
        "![judge's score and KL against seconds](time_to_reward.svg)",
        table(RACES, races),
        table(RUNS, [_run(key, curve, planned.get(key)) for key, curve in sorted(curves.items())]),
        f"{len(planned)} runs were planned; not run: {told or 'none'}.",
    ]
    return "\n\n".join(parts)


def _who(method: str, side: str) -> str:
    return "lit_rlhf" if side == OURS else PEERS[method]


def _run(key: Key, curve: Curve, planned: int | None) -> list[str]:
    method, rate, seed, side = key
    last, top = curve[-1], best(smooth(curve))
    each = [f"{seconds / last.iteration:.2f}" for seconds in (last.cpu, last.wall)]
    reached = [f"{top.gold:.3f} ± {top.gold_error:.3f}", f"{top.kl:.2f} ± {top.kl_error:.2f}"]
    came = f"{last.iteration} of {planned or last.iteration}"
    numbers = [f"{rate:g}", str(seed), came, *each, *reached, f"{top.cpu:.0f}"]
    return [NAMES[method], _who(method, side), *numbers]


def _races(method: str, ours: dict[int, Curve], theirs: dict[int, Curve]) -> list[list[str]]:
    rows, ratios, differences = [], [], []
    goal_ratio = str(GOALS.get(method, ""))
    for seed in sorted(ours.keys() & theirs.keys()):
        own, peer = ours[seed], theirs[seed]
        goal = best(peer)
        there = reach(own, goal)
        sooner = ["not reached", "", "", ""]
        if there is not None:
            ratios.append(goal.cpu / there.cpu)
            wall = f"{goal.wall / there.wall:.1f}"
            sooner = [f"{there.cpu:.0f}", f"{there.kl:.2f}", f"**{ratios[-1]:.1f}**", wall]
        end = min(own[-1].cpu, peer[-1].cpu)
        scores = at(own, end), at(peer, end)
        error = hypot(own[-1].gold_error, peer[-1].gold_error)
        differences.append((scores[0] - scores[1], error))
        target = [f"{goal.gold:.3f}", f"{goal.kl:.2f}", f"{goal.cpu:.0f}"]
        equal = [f"{end:.0f}", *(f"{score:.3f}" for score in scores)]
        last = f"{scores[0] - scores[1]:+.3f} ± {error:.3f}"
        rows.append([NAMES[method], str(seed), *target, *sooner, goal_ratio, *equal, last])
    if len(rows) > 1:
        mean = fmean(difference for difference, _ in differences)
        error = hypot(*(error for _, error in differences)) / len(rows)
        of = f"{len(ratios)} of {len(rows)} reached"
        least_to_most = f"({min(ratios):.1f} to {max(ratios):.1f})" if ratios else ""
        spread = f"{geometric_mean(ratios):.1f} {least_to_most}" if ratios else ""
        middle = ["", "", "", of, "", spread, "", goal_ratio, "", "", ""]
        rows.append([NAMES[method], "all", *middle, f"{mean:+.3f} ± {error:.3f}"])
    return rows


def draw(curves: Curves, path: Path) -> None:
    """Score and KL against CPU seconds, one column a method, at each side's best rate."""
    methods = [name for name in NAMES if any(key[0] == name for key in curves)]
    figure = Figure(figsize=(3.8 * len(methods), 5.6), layout="constrained")
    panels = figure.subplots(2, len(methods), sharex="col", squeeze=False)
    for method, (top, bottom) in zip(methods, panels.T, strict=True):
        for side, colour in ((OURS, "#b5342f"), (THEIRS, "#2f6db5")):
            for i, curve in enumerate(tuned(curves, method, side).values()):
                seconds = [point.cpu for point in curve]
                style = {"color": colour, "lw": 1.4, "marker": ".", "ms": 4}
                style["label"] = _who(method, side) if i == 0 else None
                score, error = [p.gold for p in curve], [p.gold_error for p in curve]
                top.plot(seconds, score, **style)
                band = [
                    [s + sign * e for s, e in zip(score, error, strict=True)] for sign in (-1, 1)
                ]
                top.fill_between(seconds, *band, color=colour, alpha=0.12, lw=0)
                bottom.plot(seconds, [point.kl for point in curve], **style)
        top.set_title(NAMES[method])
        bottom.set_xlabel("CPU seconds of training")
        top.legend(frameon=False, fontsize=8, loc="upper left")
        for axes in (top, bottom):
            axes.grid(color="#e8eaee")
    panels[0][0].set_ylabel("judge's score")
    panels[1][0].set_ylabel("KL to the initial policy, nats")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
