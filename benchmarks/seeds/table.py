"""From runs to a table."""

from collections.abc import Sequence
from statistics import fmean, stdev

from benchmarks.markdown import table
from benchmarks.seeds.runs import COLLAPSED, Budget, Row

COLUMNS = {
    "gold_before": "gold before",
    "gold_after": "gold after",
    "gap_closed": "gap closed",
    "kl": "KL, nats",
    "distinct_2_after": "distinct-2",
    "entropy": "entropy, nats a token",
    "seconds": "seconds",
}
"""What is shown of each run."""


def summarize(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """By method: number of runs and of collapsed ones; of each column mean, deviation, least and most."""
    found: dict[str, dict[str, float]] = {}
    for method in dict.fromkeys(str(row["method"]) for row in rows):
        own = [row for row in rows if row["method"] == method]
        summary: dict[str, float] = {
            "runs": len(own),
            "collapsed": sum(bool(row["collapsed"]) for row in own),
        }
        for name in COLUMNS:
            values = [float(row[name]) for row in own]
            spread = stdev(values) if len(values) > 1 else 0.0
            summary |= {f"{name}_mean": fmean(values), f"{name}_std": spread}
            summary |= {f"{name}_min": min(values), f"{name}_max": max(values)}
        found[method] = summary
    return found


def markdown(rows: Sequence[Row], budget: Budget) -> str:
    """A table of the methods (mean, plus or minus the deviation over seeds, worst seed) and one of all runs."""
    what = f"{budget.iterations} iterations of {budget.completions} completions, KL coefficient {budget.kl_coef:g}"
    methods = []
    for method, summary in summarize(rows).items():
        cells = [
            f"{summary[f'{name}_mean']:.3g} ± {summary[f'{name}_std']:.2g}" for name in COLUMNS
        ]
        counts = (f"{summary['runs']:g}", f"{summary['collapsed']:g}")
        methods.append([method, *counts, *cells, f"{summary['gap_closed_min']:.3g}"])
    runs = [
        [str(row["method"]), str(row["seed"]), "yes" if row["collapsed"] else "no"]
        + [f"{float(row[name]):.3g}" for name in COLUMNS]
        for row in rows
    ]
    parts = [
        f"{what}; gold is the true utility on {budget.heldout_prompts} held-out prompts. {COLLAPSED}",
        table(["method", "runs", "collapsed", *COLUMNS.values(), "least gap closed"], methods),
        table(["method", "seed", "collapsed", *COLUMNS.values()], runs),
    ]
    return "\n\n".join(parts) + "\n"
