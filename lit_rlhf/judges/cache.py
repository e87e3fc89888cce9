"""What a judge has said, on disk: nothing is asked twice, after a kill neither."""

import hashlib
import json
from pathlib import Path

from lit_rlhf.extras import importing_extra
from lit_rlhf.files import writing


class Answers:
    """Answers by the content of what was asked; safe for several threads and processes.

    Args:
        directory: Made where it is missing.

    Raises:
        ConfigurationError: diskcache isn't installed.
        FileError: The directory can't be written.
    """

    def __init__(self, directory: Path) -> None:
        with importing_extra("judge", "The cache of a judge"):
            from diskcache import Cache, JSONDisk
        with writing(directory, "The cache of a judge in"):
            self._cache = Cache(str(directory), disk=JSONDisk, eviction_policy="none", cull_limit=0)

    @staticmethod
    def key(question: object) -> str:
        """A hash of what is asked, and of whom."""
        return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> dict[str, float] | None:
        """The answer, if there is one."""
        found: dict[str, float] | None = self._cache.get(key)
        return found

    def put(self, key: str, answer: dict[str, float]) -> None:
        """Keep an answer; it is on disk when this returns."""
        self._cache[key] = answer
