"""The pure part of benchmarks/memory: what the table says of the peaks."""

import pytest

from benchmarks.memory.__main__ import GOAL, table

MIB = 2**20


@pytest.mark.parametrize(("ours", "verdict"), [(440, "Met"), (460, r"**Missed**")])
def test_the_median_is_held_to_the_goal(ours: int, verdict: str) -> None:
    shown = table({"ours": [n * MIB for n in (ours, 900, 1)], "theirs": [n * MIB for n in (1000, 990, 2000)]})
    assert f"| ours | {ours} | 1–900 | {ours / 1000:.2f} |" in shown
    assert "| theirs | 1000 | 990–2000 | 1.00 |" in shown
    assert shown.endswith(f"Goal: at most {GOAL}. {verdict}.")
