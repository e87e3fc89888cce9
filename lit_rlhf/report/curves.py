"""Curves of runs, and what these came to: runs that differ by seed alone are one, with a band and an interval."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from lit_rlhf.callbacks.guards import distinct_2
from lit_rlhf.report.line_plot import Series, line_plot
from lit_rlhf.report.page import Figures, Section
from lit_rlhf.report.plots import scatter_plot
from lit_rlhf.report.runs import Curve, Run
from lit_rlhf.report.vega import Plot

DISTINCT_2 = "train/samples/distinct_2"
"""Computed from the samples: mean share of different word pairs within a response."""

TOLD = (
    ("train/objective/scores", "reward"),
    ("val/objective/scores", "reward, validation"),
    ("train/rewards/gold/mean", "gold reward"),
    ("train/objective/kl", "KL, nats per completion"),
    ("train/completions/mean_length", "tokens per completion"),
    ("train/accuracy", "accuracy"),
    ("val/accuracy", "accuracy, validation"),
    ("train/rewards/accuracies", "accuracy of implicit rewards"),
    ("val/rewards/accuracies", "accuracy of implicit rewards, validation"),
    ("train/loss", "loss"),
    ("val/loss", "loss, validation"),
)
"""The metrics that a page begins with, and what they are called there."""

_TIME = "Time and memory"
_GROUPS = (
    (
        "Reward",
        (
            r"objective/(scores|rlhf|non_score)|rewards/|^reward$|reward_std|(min|mean|max)_reward"
            r"|accuracy$|margin$|preference/|calibration|correlation|zero_std|sampling/scores"
        ),
    ),
    ("KL and entropy", r"objective/(kl|entropy)|(^|/)kl(_coef)?$|approxkl|entropy|logps/"),
    ("Loss and steps", r"loss|grad_norm|skipped_steps|(^|/)lr\b|learning_rate|perplexity"),
    ("Clipping", r"clip_ratio|clipfrac|val/ratio|importance_sampling"),
    ("Lengths and variety", r"completions/|distinct_2|length_ratio|num_eos|num_tokens"),
    (_TIME, r"time/|throughput/|memory/"),
)
_MEANING = {
    "objective/scores": "The reward's scores of the completions, before the KL is taken off.",
    "objective/kl": "Nats per completion between the policy and the initial one.",
    "grad_norm": "Before clipping.",
    "skipped_steps": "Since the start: steps whose gradient wasn't finite.",
    "distinct_2": "Share of different pairs of neighbouring words within a response: falls where it repeats itself.",
    "completions/clipped_ratio": "Share of completions that were cut at the limit of tokens.",
}
# 97.5 % quantiles, 1 to 9 degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Group:
    """Runs that differ by seed alone; one of them is a group too."""

    name: str
    runs: Sequence[Run]

    def series(self, metric: str, name: str = "") -> Series | None:
        """The metric's curve: of several runs the mean where all have a value, with a band from least to greatest."""
        curves = [_curve(run, metric) for run in self.runs]
        name = name or self.name
        if len(curves) == 1:
            xs, ys = curves[0]
            return Series(name, xs, ys) if xs else None
        values = [{x: y for x, y in zip(*curve, strict=True) if y is not None} for curve in curves]
        common = sorted(set.intersection(*(set(found) for found in values)))
        rows = [[found[x] for found in values] for x in common]
        if not rows:
            return None
        mean, low, high = ([pick(row) for row in rows] for pick in (fmean, min, max))
        return Series(name, common, mean, low, high)

    def ends(self, metric: str) -> list[float | None]:
        """Of each run, the mean over the last tenth of the metric's curve; None where it has none."""
        return [_end(_curve(run, metric)) for run in self.runs]

    def final(self, metric: str) -> tuple[float, float | None] | None:
        """Mean over the ends, and half the width of its 95 % interval over three seeds or more."""
        ends = [end for end in self.ends(metric) if end is not None]
        return (fmean(ends), t_interval(ends)) if ends else None


def t_interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of a mean (Student's t); None of fewer than three values."""
    if len(values) < 3:
        return None
    freedom = len(values) - 1
    quantile = _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.5 / freedom
    return quantile * stdev(values) / math.sqrt(len(values))


def spreads(group: Group) -> dict[str, list[float | None]]:
    """Of each metric that a page begins with and some run of the group has: the cells under `columns`.

    By what it is called: mean, half the width of its 95 % interval (of three runs or more), standard deviation (n - 1),
    and the end of each run.
    """
    found: dict[str, list[float | None]] = {}
    for metric, label in TOLD:
        ends = group.ends(metric)
        if known := [end for end in ends if end is not None]:
            deviation = stdev(known) if len(known) > 1 else None
            found[label] = [fmean(known), t_interval(known), deviation, *ends]
    return found


def columns(group: Group) -> list[str]:
    """The heads over the cells of `spreads`."""
    return ["mean", "± (95 %)", "std", *(run.name for run in group.runs)]


def group_by_seed(runs: Sequence[Run]) -> list[Group]:
    """Runs whose options are the same but for seeds and places stand together; one without a configuration is alone."""
    found: list[list[Run]] = []
    for run in runs:
        options = run.settled()
        mates = next((g for g in found if options and g[0].settled() == options), None)
        if mates is None:
            found.append([run])
        else:
            mates.append(run)
    return [Group(_name(runs), runs) for runs in found]


def _name(runs: Sequence[Run]) -> str:
    """Of runs with the same options: what `--seeds` made is called as its directory."""
    if len(runs) == 1:
        return runs[0].name
    places = {run.path.resolve().parent for run in runs}
    if len(places) == 1 and all(re.fullmatch(r"seed-\d+", run.path.name) for run in runs):
        return f"{places.pop().name}, {len(runs)} seeds"
    return f"{runs[0].name} and {len(runs) - 1} more seeds"


def curve_sections(groups: Sequence[Group]) -> list[Section]:
    """A section per kind of metric; metrics that never move are named in a sentence instead."""
    wanted = _metrics(groups)
    times = [name for name in wanted if re.fullmatch(r"time/(?!iteration)\w+", name)]
    sections, still = [], []
    for title, pattern in (*_GROUPS, ("Other metrics", "")):
        plots = []
        if len(groups) == 1:  # all phases of one run share a plot
            wanted = {name: keys for name, keys in wanted.items() if name not in times}
        for name in [name for name in wanted if re.search(pattern, name)]:
            found = _plots(groups, name, wanted.pop(name))
            plots += found
            still += [] if found else [name]
        if title == _TIME and len(groups) == 1 and times:
            phases = [
                groups[0].series(f"train/{name}", name.removeprefix("time/")) for name in times
            ]
            shown = [one for one in phases if one is not None]
            plots.insert(0, line_plot("time by phase", shown, y="seconds", zero=True))
        if plots:
            sections.append(Section(title, [Figures(plots)]))
    if still and sections:
        values = {name: groups[0].final(f"train/{name}") for name in still}
        named = [name if end is None else f"{name} ({end[0]:.4g})" for name, end in values.items()]
        told = f"These never moved, so they have no curve: {', '.join(named)}."
        sections.append(Section("What stayed the same", text=told))
    return sections


def against_each_other(groups: Sequence[Group]) -> Section | None:
    """Reward against KL, and a gold reward against the one that is optimized, where there is one."""
    plots = []
    for title, x, y, caption in (
        (
            "Reward against KL",
            "train/objective/kl",
            "train/objective/scores",
            "Each mark is an iteration: its reward, at which distance from the initial policy. Up and left is better.",
        ),
        (
            "Gold against proxy",
            "train/rewards/proxy/mean",
            "train/rewards/gold/mean",
            "Each mark is an iteration. Where the proxy grows and gold falls, the reward is being exploited.",
        ),
    ):
        points = {run.name: _pairs(run, x, y) for group in groups for run in group.runs}
        if points := {name: pair for name, pair in points.items() if pair[0]}:
            names = {"x": x.removeprefix("train/"), "y": y.removeprefix("train/")}
            plots.append(scatter_plot(title, points, **names, caption=caption))
    return Section("What it cost", [Figures(plots)]) if plots else None


def _pairs(run: Run, x: str, y: str) -> tuple[list[float], list[float]]:
    at = dict(zip(*run.curve(y), strict=True))
    pairs = [(one, at.get(i)) for i, one in zip(*run.curve(x), strict=True)]
    whole = [(a, b) for a, b in pairs if a is not None and b is not None]
    return [a for a, _ in whole], [b for _, b in whole]


def _metrics(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Metrics without their prefix, each with the names under which it was logged: in training, in validation."""
    found: dict[str, list[str]] = {}
    for run in (run for group in groups for run in group.runs):
        names = run.names()
        if run.samples and "train/guard/distinct_2" not in names:
            names.append(DISTINCT_2)
        for key in names:
            keys = found.setdefault(re.sub(r"^(train|val)/", "", key), [])
            if key not in keys:
                keys.append(key)
    return found


def _plots(groups: Sequence[Group], name: str, keys: Sequence[str]) -> list[Plot]:
    """Plots of a metric: of one run training and validation in one, of several one each."""
    validates = {key: key.startswith("val/") for key in keys}
    if len(groups) == 1:
        parts = [(k, "validation" if v else "training", groups[0]) for k, v in validates.items()]
        drawn = [(name, parts)]
    else:
        drawn = [
            (f"{name}, validation" if validation else name, [(key, g.name, g) for g in groups])
            for key, validation in validates.items()
        ]
    told = [text for key, text in _MEANING.items() if name.endswith(key)]
    if any(len(group.runs) > 1 for group in groups):
        told.append("Of several seeds: the mean, with a band from least to greatest.")
    plots = []
    for title, parts in drawn:
        series = [one for key, label, group in parts if (one := group.series(key, label))]
        if len({y for one in series for y in one.y if y is not None}) > 1:
            plots.append(line_plot(title, series, caption=" ".join(told)))
    return plots


def _curve(run: Run, metric: str) -> Curve:
    if metric != DISTINCT_2:
        return run.curve(metric)
    texts: dict[int, list[str]] = {}
    for row in run.samples:
        if row.get("stage") == "train" and isinstance(row.get("response"), str):
            texts.setdefault(row["iteration"] + 1, []).append(row["response"])
    return list(texts), [distinct_2(found) for found in texts.values()]


def _end(curve: Curve) -> float | None:
    known = [y for y in curve[1] if y is not None]
    return fmean(known[-max(len(known) // 10, 1) :]) if known else None


def values_of(groups: Sequence[Group]) -> Mapping[str, Any]:
    """All curves of all runs, for the JSON beside the page."""
    return {
        run.name: {
            metric: dict(zip(("iteration", "value"), run.curve(metric), strict=True))
            for metric in run.names()
        }
        for group in groups
        for run in group.runs
    }
