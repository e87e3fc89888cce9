"""From runs to results: ratios, parity and utilisation, as one dictionary for JSON."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from benchmarks.comparison.ledger import Measured
from benchmarks.comparison.workloads import GROUPS, ROUNDING, Side, Workload

Runs = Mapping[tuple[str, str], Sequence[Measured]]
Judged = Mapping[tuple[str, str], Measured]


def compare(workload: Workload, runs: Runs, judged: Judged, dtype: str) -> dict[str, Any]:
    """One workload's entry.

    Args:
        workload: What was compared.
        runs: Timed runs by group and side.
        judged: Runs by group and side that tell whether the sides agree; where there are none, the timed ones do.
        dtype: Of the timed runs' weights.
    """
    ours, theirs = runs[workload.group, workload.ours.key], runs[workload.group, workload.peer.key]
    result = {
        "unit": f"{GROUPS[workload.group].unit}/s",
        **_ratio("throughput", *([r.samples_per_second for r in side] for side in (ours, theirs))),
        **_ratio("memory", *([r.peak_bytes for r in side] for side in (ours, theirs))),
        "goals": workload.goals_in(dtype),
        "ours": _side(workload.ours, ours),
        "peer": _side(workload.peer, theirs),
        "parity": _parity(workload, ours, theirs, judged),
        "utilisation": utilisation(ours, dtype),
    }
    tokens = [[run.tokens_per_second for run in side] for side in (ours, theirs)]
    if all(rate is not None for side in tokens for rate in side):
        result |= _ratio("tokens", *tokens)
    return result


def _ratio(name: str, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    found = ratio(ours, theirs)
    return {f"{name}_ratio": found["median"], f"{name}_ratio_range": [found["min"], found["max"]]}


def utilisation(runs: Sequence[Measured], dtype: str) -> dict[str, Any]:
    """By counted phase: share of the peak in this dtype of the run's own process, and what it is made of."""
    found: dict[str, Any] = {}
    for phase in runs[0].result["flops"][0] if runs[0].result.get("flops") else ():
        shares, rates, seconds = [], [], []
        for run in runs:
            flops = sum(step[phase] for step in run.result["flops"])
            spent = sum(step[phase] for step in run.result["phases"])
            shares.append(flops / spent / run.result["peaks"][dtype])
            rates.append(flops / spent / 1e9)
            seconds.append(spent / len(run.result["phases"]))
        found[phase] = {
            "share_of_peak": spread(shares),
            "gflops_per_second": spread(rates),
            "seconds_per_step": spread(seconds),
            "gflop_per_step": fmean(step[phase] for step in runs[0].result["flops"]) / 1e9,
        }
    return found


def _parity(
    workload: Workload, ours: Sequence[Measured], theirs: Sequence[Measured], judged: Judged
) -> dict[str, Any]:
    """Of loss curves the judged runs, in float32, must agree, and the timed ones but for rounding."""
    apart = [judged.get((workload.group, side.key)) for side in (workload.ours, workload.peer)]
    check = GROUPS[workload.group].check
    timed = check(ours, theirs)
    if apart[0] is None or apart[1] is None:
        return timed
    exact = check([apart[0]], [apart[1]])
    if exact["kind"] != "loss curves":
        return exact
    near = timed["worst"] <= ROUNDING
    return exact | {
        "ok": exact["ok"] and near,
        "timed": timed | {"tolerance": ROUNDING, "ok": near},
    }


def _side(side: Side, runs: Sequence[Measured]) -> dict[str, Any]:
    tokens = [rate for run in runs if (rate := run.tokens_per_second) is not None]
    steps = [seconds for run in runs for seconds in run.result["seconds"]]
    return {
        "name": side.label,
        "runs": len(runs),
        "samples_per_second": spread([run.samples_per_second for run in runs]),
        "tokens_per_second": spread(tokens) if tokens else None,
        "seconds_per_step": spread(steps),
        "peak_gigabytes": spread([run.peak_gigabytes for run in runs]),
        "wall_seconds": spread([run.wall_seconds for run in runs]),
    }


Spread = dict[str, float]
"""Median, least and most of several runs, or of several pairs of runs."""


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The ratio of the medians, and the least and most ratio of a pair of runs that followed one another.

    Raises:
        ValueError: The runs don't pair up.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} runs of ours and {len(theirs)} of the peer's make no pairs.")
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return spread(pairs) | {"median": median(ours) / median(theirs)}
