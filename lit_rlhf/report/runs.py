"""What a run's directory holds, read for its report."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_rlhf.callbacks.run_record import RUN_RECORD, read_starts
from lit_rlhf.errors import DataError

METRICS, _SAMPLES, _PROFILE = "metrics.jsonl", "samples.jsonl", "profile.json"
_SEEDS = ("seed", "seed_everything", "init_seed")
_PLACES = (
    "run_dir", "default_root_dir", "dirpath", "save_dir", "cache_dir", "ckpt_path", "profile",
    "log_json",
)  # fmt: skip

Curve = tuple[list[int], list[float | None]]


@dataclass(frozen=True)
class Run:
    """A run as its directory tells it.

    Attributes:
        name: What distinguishes it from the other runs of a report.
        path: The directory.
        metrics: Lines of `metrics.jsonl`.
        samples: Lines of `samples.jsonl`; none where the run drew none.
        record: `run.json`; empty where there is none.
        profile: `profile.json`; empty where there is none.
        config: The configuration's text; empty where there is none.
        damaged: Lines that couldn't be read, by file.
    """

    name: str
    path: Path
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    record: dict[str, Any]
    profile: dict[str, Any]
    config: str
    damaged: dict[str, int]

    def curve(self, metric: str) -> Curve:
        """Iterations and values of a metric; where it was written twice for an iteration, the later counts."""
        found = {row["iteration"]: row[metric] for row in self.metrics if metric in row}
        return list(found), list(found.values())

    def names(self) -> list[str]:
        """The metrics, in the order in which they were first written."""
        skipped = {"iteration", "epoch", "stage", "train/iteration"}
        return [
            name
            for name in dict.fromkeys(k for row in self.metrics for k in row)
            if name not in skipped
        ]

    def settled(self) -> dict[str, Any]:
        """See `settled_options`."""
        return settled_options(self.config)

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Its first start and its resumes, as `run.json` has them."""
        return list(self.record.get("starts", []))


def settled_options(config: str) -> dict[str, Any]:
    """The options that make runs different experiments: all but seeds and places, by the names of the command line."""
    found = dict(flat_options(yaml.safe_load(config))) if config else {}
    return {
        name.replace(".init_args", ""): value
        for name, value in found.items()
        if name.rpartition(".")[2] not in (*_SEEDS, *_PLACES)
    }


def read_runs(paths: list[Path]) -> list[Run]:
    """Read runs, and give each the shortest name that tells it from the others.

    Raises:
        DataError: A path is no run's directory, is named twice, or has no metrics yet.
    """
    for i, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:i]]:
            raise DataError(f"{path} is named twice. Name each run once.")
    parts = [path.resolve().parts for path in paths]
    depth = next(n for n in range(1, 100) if len({part[-n:] for part in parts}) == len(parts))
    return [
        _read_run(path, "/".join(part[-depth:])) for path, part in zip(paths, parts, strict=True)
    ]


def _read_run(path: Path, name: str) -> Run:
    if not path.is_dir():
        what = "is a file" if path.exists() else "isn't there"
        raise DataError(f"{path} {what}: give the directory of a run, its run_dir.")
    configs = sorted(path.rglob("config.yaml"), key=lambda found: found.stat().st_mtime)
    config = configs[-1].read_text(encoding="utf-8") if configs else ""
    file, starts = path / METRICS, read_starts(path / RUN_RECORD)
    writes_metrics = not config or "MetricsFile" in config or "\nlog_json: true" in config
    if not file.is_file() and not (starts and writes_metrics):
        below = sorted(str(found.parent) for found in path.glob(f"*/**/{METRICS}"))[:5]
        hint = (
            f"Runs below it: {', '.join(below)}."
            if below
            else "A run writes it from its first iteration on, by the callback MetricsFile."
        )
        raise DataError(f"{path} is no directory of a run, for it holds no {METRICS}. {hint}")
    damaged: dict[str, int] = {}
    metrics = _lines(file, damaged)
    if not metrics:
        bad = f" ({damaged[METRICS]} lines that can't be read)" if damaged else ""
        raise DataError(
            f"{path} has no metrics yet{bad}: the first line comes after the first iteration. {_way_out(starts)}"
        )
    return Run(
        name=name,
        path=path,
        metrics=metrics,
        samples=_lines(path / _SAMPLES, damaged),
        record=_object(path / RUN_RECORD, damaged),
        profile=_object(path / _PROFILE, damaged),
        config=config,
        damaged=damaged,
    )


def _way_out(starts: list[dict[str, Any]]) -> str:
    """What to do about a run without an iteration, by its record."""
    last = starts[-1] if starts else {}
    if last.get("ended"):
        why = f": {last['reason']}" if last.get("reason") else ""
        return f"The run ended before it ({last.get('state')}{why}): start it again."
    return "Wait for it; if the run was killed, start it again."


def _lines(path: Path, damaged: dict[str, int]) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines that have an iteration; what isn't one is counted."""
    rows = []
    if not path.is_file():
        return []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # half a line, or bytes that are no text
            row = None
        if isinstance(row, dict) and isinstance(row.get("iteration"), int):
            rows.append(row)
        elif line.strip():
            damaged[path.name] = damaged.get(path.name, 0) + 1
    return rows


def _object(path: Path, damaged: dict[str, int]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        damaged[path.name] = 1
        return {}
    return found


def flat_options(options: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Options with dotted names; in lists by the class, so that one more moves no other, else by number."""
    if isinstance(options, Mapping) and options:
        for name, value in options.items():
            yield from flat_options(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(options, list) and any(isinstance(value, Mapping) for value in options):
        used: Counter[str] = Counter()
        for number, value in enumerate(options):
            path = value.get("class_path") if isinstance(value, Mapping) else None
            name = str(number) if path is None else str(path).rpartition(".")[2]
            used[name] += 1
            name = name if used[name] == 1 else f"{name} ({used[name]})"
            yield from flat_options(value, f"{prefix}.{name}")
    else:
        yield prefix, options
