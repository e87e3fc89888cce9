"""What a part found: facts, checks with their limits, and measures; on disk as soon as each is known."""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lit_rlhf.files import write_text


@dataclass
class Result:
    """Grows while a part runs.

    Attributes:
        facts: Words to know.
        checks: By name: the value, the limit it must not exceed, and whether it holds.
        measures: By what was measured: numbers by unit (`tokens_per_s`, `peak_gib`, ...).
        failures: What raised, by name.
    """

    facts: dict[str, str] = field(default_factory=dict)
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    measures: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._file: Path | None = None

    def keep_in(self, file: Path) -> None:
        """Write everything to a file from now on, as it comes: who ends this process loses nothing."""
        self._file = file
        self._keep()

    def note(self, name: str, said: str) -> None:
        """Add a fact."""
        self.facts[name] = said
        self._keep()

    def check(self, name: str, value: float, limit: float) -> None:
        """Hold a value to a limit; a NaN doesn't hold."""
        self.checks[name] = {"value": value, "limit": limit, "holds": bool(value <= limit)}
        self._keep()

    def measure(self, name: str, **numbers: float) -> None:
        """Add numbers."""
        self.measures.setdefault(name, {}).update(numbers)
        self._keep()

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Do something that may fail: what it raised is noted and printed, and the part goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - of which kind is what is to be found
            traceback.print_exc()
            self.failures[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
            self._keep()

    @property
    def sound(self) -> bool:
        """Whether nothing failed and all checks hold."""
        return not self.failures and all(check["holds"] for check in self.checks.values())

    def write(self, path: Path) -> None:
        """As JSON."""
        write_text(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> "Result":
        """What `write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def _keep(self) -> None:
        if self._file is not None:
            self.write(self._file)
