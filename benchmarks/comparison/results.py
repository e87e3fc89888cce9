"""From runs to results: ratios, parity and utilisation, as one dictionary for JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.comparison.ledger import Measured
from benchmarks.comparison.spread import Spread, ratio
from benchmarks.comparison.workloads import ROUNDING, Side, Workload

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
    throughput = ratio(
        [run.samples_per_second for run in ours], [run.samples_per_second for run in theirs]
    )
    memory = ratio([run.peak_bytes for run in ours], [run.peak_bytes for run in theirs])
    result = {
        "unit": f"{workload.unit}/s",
        "throughput_ratio": throughput.median,
        "throughput_ratio_range": [throughput.min, throughput.max],
        "memory_ratio": memory.median,
        "memory_ratio_range": [memory.min, memory.max],
        "goals": workload.goals_in(dtype),
        "ours": _side(workload.ours, ours),
        "peer": _side(workload.peer, theirs),
        "parity": _parity(workload, ours, theirs, judged),
        "utilisation": utilisation(ours, dtype),
    }
    tokens = [[run.tokens_per_second for run in side] for side in (ours, theirs)]
    if all(rate is not None for side in tokens for rate in side):
        found = ratio(*[[float(rate or 0) for rate in side] for side in tokens])
        result |= {"tokens_ratio": found.median, "tokens_ratio_range": [found.min, found.max]}
    return result


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
            "share_of_peak": Spread.of(shares).as_dict(),
            "gflops_per_second": Spread.of(rates).as_dict(),
            "seconds_per_step": Spread.of(seconds).as_dict(),
            "gflop_per_step": sum(s[phase] for s in runs[0].result["flops"])
            / len(runs[0].result["flops"])
            / 1e9,
        }
    return found


def _parity(
    workload: Workload, ours: Sequence[Measured], theirs: Sequence[Measured], judged: Judged
) -> dict[str, Any]:
    """Of loss curves the judged runs, in float32, must agree, and the timed ones but for rounding."""
    apart = [judged.get((workload.group, side.key)) for side in (workload.ours, workload.peer)]
    timed = workload.check(ours, theirs)
    if apart[0] is None or apart[1] is None:
        return timed
    exact = workload.check([apart[0]], [apart[1]])
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
        "samples_per_second": Spread.of([run.samples_per_second for run in runs]).as_dict(),
        "tokens_per_second": Spread.of(tokens).as_dict() if tokens else None,
        "seconds_per_step": Spread.of(steps).as_dict(),
        "peak_gigabytes": Spread.of([run.peak_gigabytes for run in runs]).as_dict(),
        "wall_seconds": Spread.of([run.wall_seconds for run in runs]).as_dict(),
    }
