"""What a profile says and where it is written: a table by phase, and the operators of one iteration."""

import json
from pathlib import Path
from typing import NamedTuple

from rich.table import Table
from torch.profiler import ProfilerActivity, profile, supported_activities

from lit_rlhf.callbacks.tables import markdown_table
from lit_rlhf.files import write_text

_OPERATORS = 20
_COLUMNS = ("phase", "seconds", "share", "tokens", "tokens/s", "utilisation")


class PhaseRow(NamedTuple):
    """A phase over the whole run."""

    phase: str
    seconds: float
    share: float  # of all seconds
    tokens: int | None
    tokens_per_second: float | None
    utilisation: float | None  # of the peak, in [0, 1]


class OperatorProfile:
    """Records which of torch's operators an iteration spends its time in."""

    def __init__(self) -> None:
        self._profile: profile | None = None
        self._text = ""

    def start(self) -> None:
        """Begin; everything is slower from here on."""
        wanted = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & supported_activities()
        self._profile = profile(activities=sorted(wanted, key=str))
        self._profile.start()

    def stop(self) -> None:
        """End, and sum up."""
        assert self._profile is not None
        self._profile.stop()
        averages = self._profile.key_averages()
        on_device = any(event.self_device_time_total > 0 for event in averages)
        key = "self_device_time_total" if on_device else "self_cpu_time_total"
        self._text = averages.table(sort_by=key, row_limit=_OPERATORS, max_name_column_width=40)
        self._profile = None  # it holds every event

    def table(self) -> str:
        """The operators with the most time of their own; empty where nothing was recorded."""
        return self._text


def phase_rows(
    seconds: dict[str, float], tokens: dict[str, int], flops: dict[str, float], peak: float | None
) -> list[PhaseRow]:
    """Rows of the table, the longest phase first.

    Args:
        seconds: By phase.
        tokens: By phase, where they are counted.
        flops: By phase, where they are counted.
        peak: FLOP/s of the device, if known.

    Example:
        >>> row = phase_rows({"update": 2.0}, {"update": 10}, {"update": 1e6}, 1e6)[0]
        >>> row.share, row.tokens_per_second, row.utilisation
        (1.0, 5.0, 0.5)
    """
    whole = sum(seconds.values()) or 1.0
    rows = []
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        count, done = tokens.get(name), flops.get(name)
        rows.append(
            PhaseRow(
                phase=name,
                seconds=spent,
                share=spent / whole,
                tokens=count,
                tokens_per_second=count / spent if count and spent > 0 else None,
                utilisation=done / (spent * peak) if done and peak and spent > 0 else None,
            )
        )
    return rows


def phase_table(rows: list[PhaseRow]) -> Table:
    """The rows for a terminal."""
    table = Table(*_COLUMNS, title="Time by phase")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def write_profile(
    directory: Path, rows: list[PhaseRow], peak: float | None, operators: str
) -> Path:
    """Write `profile.md` and `profile.json`; returns the former's path.

    Args:
        directory: Where; made if it is missing.
        rows: Of the table by phase.
        peak: FLOP/s that utilisation is measured by, if known.
        operators: Table of an iteration's operators; may be empty.
    """
    parts = ["# Time by phase", markdown_table(_COLUMNS, [_cells(row) for row in rows])]
    if peak is not None:
        parts.append(f"Utilisation is of {peak / 1e9:,.1f} GFLOP/s.")
    if operators:
        parts += ["# Operators of one iteration", f"```\n{operators.strip()}\n```"]
    path = directory / "profile.md"
    write_text(path, "\n\n".join(parts) + "\n", "The profile")
    record = {"peak_flops": peak, "phases": [row._asdict() for row in rows]}
    write_text(directory / "profile.json", json.dumps(record, indent=2) + "\n", "The profile")
    return path


def _cells(row: PhaseRow) -> tuple[str, ...]:
    return (
        row.phase,
        f"{row.seconds:.1f}",
        f"{row.share:.0%}",
        "" if row.tokens is None else f"{row.tokens:,}",
        "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        "" if row.utilisation is None else f"{row.utilisation:.1%}",
    )
