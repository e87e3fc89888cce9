"""Results of runs on disk, one file a run, so that a comparison which was interrupted goes on where it stopped."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.peers.processes import Run
from lit_rlhf.files import write_text


@dataclass(frozen=True)
class Measured:
    """A run that has ended.

    Attributes:
        result: What its process reported.
        wall_seconds: From start to end of the process.
        peak_bytes: Highest resident memory of the process tree.
    """

    result: dict[str, Any]
    wall_seconds: float
    peak_bytes: int

    @property
    def samples_per_second(self) -> float:
        """Over the timed steps."""
        return float(self.result["samples"]) / fmean(self.result["seconds"])

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens over the timed steps; None where nothing is generated or the peer doesn't tell."""
        tokens = self.result.get("tokens")
        return sum(tokens) / sum(self.result["seconds"]) if tokens else None

    @property
    def peak_gigabytes(self) -> float:
        """10^9 bytes."""
        return self.peak_bytes / 1e9


class Ledger:
    """Files `<folder>/<name>.json`, each with the recipe of its run: a run of another recipe doesn't count.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str, recipe: dict[str, Any]) -> Measured | None:
        """What was measured of this recipe under this name, if it was."""
        path = self._path(name)
        if not path.is_file():
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["recipe"] != json.loads(json.dumps(recipe)):
            return None
        return Measured(**stored["measured"])

    def get(self, name: str, recipe: dict[str, Any], run: Callable[[], Run]) -> Measured:
        """What was measured of it, or is now."""
        found = self.find(name, recipe)
        if found is not None:
            return found
        done = run()
        measured = Measured(done.result, done.seconds, done.peak_rss)
        stored = {"recipe": recipe, "measured": vars(measured)}
        write_text(self._path(name), json.dumps(stored, indent=1))
        return measured

    def forget(self) -> None:
        """Remove all results."""
        for path in self.folder.glob("*.json"):
            path.unlink()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def digest(files: Iterable[Path]) -> str:
    """Of names and contents of files: results of other code don't count."""
    found = hashlib.sha256()
    for path in sorted(files):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]
