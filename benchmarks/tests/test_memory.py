"""The pure part of benchmarks/memory: what the table says of the peaks."""

import pytest

from benchmarks.memory.__main__ import GOAL, shown

MIB = 2**20


@pytest.mark.parametrize(("ours", "verdict"), [(440, "Met"), (460, r"**Missed**")])
def test_the_median_is_held_to_the_goal(ours: int, verdict: str) -> None:
    peaks = {
        "recompute": {
            "ours": [n * MIB for n in (ours, 900, 1)],
            "theirs": [n * MIB for n in (1000, 990, 2000)],
        }
    }
    text = shown({**peaks, "store": {"ours": [MIB], "theirs": [2 * MIB]}})
    assert text.startswith("|  | ours | theirs | share |")
    assert f"| recompute | {ours} MiB (1–900) | 1000 MiB (990–2000) | {ours / 1000:.2f} |" in text
    assert "| store | 1 MiB (1–1) | 2 MiB (2–2) | 0.50 |" in text
    assert text.endswith(f"Goal of the first row: at most {GOAL}. {verdict}.")
