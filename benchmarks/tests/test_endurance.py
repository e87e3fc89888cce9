"""benchmarks/endurance.py measures what it says, on a run of one epoch."""

from pathlib import Path

import pytest

from benchmarks.endurance import run, slope


def test_a_short_run(tmp_path: Path) -> None:
    rows = run(15, tmp_path).rows
    assert [row[0] for row in rows] == list(range(1, 16))
    assert all(100 < row[1] < 10_000 for row in rows)
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


def test_the_slope_is_of_the_second_half() -> None:
    rows = [(i, 500.0 + (i if i > 10 else 7 * i), 9, 2, 5) for i in range(1, 21)]
    assert slope(rows) == pytest.approx(1024)
