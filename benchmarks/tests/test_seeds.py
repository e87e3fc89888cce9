"""The pure parts of benchmarks/seeds: when a run has collapsed, and the table."""

import pytest

from benchmarks.seeds.runs import COLUMNS, METHODS, Budget, Row, collapsed, markdown, summarize

HEALTHY: Row = {
    "method": "PPO",
    "seed": 0,
    "gold_before": 0.0,
    "gold_after": 1.0,
    "kl": 5.0,
    "entropy": 0.5,
    "distinct_within": 0.95,
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, False),
        ({"gold_after": 0.0}, True),
        ({"gold_after": float("nan")}, True),
        ({"kl": 31.0}, True),
        ({"entropy": 0.01}, True),
        ({"distinct_within": 0.4}, True),
    ],
)
def test_when_a_run_has_collapsed(change: Row, expected: bool) -> None:
    assert collapsed({**HEALTHY, **change}) is expected


def test_the_table_has_a_line_for_each_method_and_run() -> None:
    values = dict.fromkeys(COLUMNS, 1.0)
    rows: list[Row] = [
        {**values, "method": "PPO", "seed": 0, "collapsed": False, "gap_closed": 0.5},
        {**values, "method": "PPO", "seed": 1, "collapsed": True, "gap_closed": -0.1},
        {**values, "method": "GRPO", "seed": 0, "collapsed": False, "gap_closed": 0.7},
    ]
    summary = summarize(rows)
    assert (summary["PPO"]["runs"], summary["PPO"]["collapsed"]) == (2, 1)
    assert summary["PPO"]["gap_closed_mean"] == pytest.approx(0.2)
    assert summary["PPO"]["gap_closed_min"] == -0.1
    lines = markdown(rows, Budget()).splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith(("| PPO", "| GRPO"))] == [
        "| PPO",
        "| GRPO",
        "| PPO",
        "| PPO",
        "| GRPO",
    ]
    assert "collapsed if its gold reward" in lines[0]


def test_iterations_divide_for_each_method() -> None:
    budget = Budget()
    for method in METHODS.values():
        assert budget.completions % (method.num_samples * budget.num_minibatches) == 0
