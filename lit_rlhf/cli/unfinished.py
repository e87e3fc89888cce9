"""What a command that was killed had done: kept beside the file that it will write."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_rlhf.cli.selection import Sample
from lit_rlhf.files import writing

Samples = Mapping[int, Sequence[Sample]]
"""By the index of their row."""


class Unfinished:
    """Samples so far, a batch to each line of a hidden file beside the output, which goes when the output is whole.

    A kill loses the batch in work alone. Lines of another request don't count.

    Args:
        output: The file to be written.
        request: All that decides the samples.

    Example:
        >>> import tempfile
        >>> output = Path(tempfile.mkdtemp()) / "out.jsonl"
        >>> Unfinished(output, "a").add({0: [Sample("yes", None, finished=True)]})
        >>> Unfinished(output, "a").known[0][0].text, Unfinished(output, "b").known
        ('yes', {})
    """

    def __init__(self, output: Path, request: Any) -> None:
        self.path = output.with_name(f".{output.name}.unfinished")
        self.key = hashlib.sha256(json.dumps(request, default=str).encode()).hexdigest()
        self.known: dict[int, Sequence[Sample]] = {}
        if not self.path.is_file():
            return
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        os.truncate(self.path, whole)  # of a line cut by a kill or a full disk nothing is left
        for line in map(json.loads, text[:whole].splitlines()):
            if line["request"] == self.key:
                found = line["samples"].items()
                self.known |= {int(row): [Sample(**each) for each in of] for row, of in found}

    def add(self, samples: Samples) -> None:
        """Keep a batch; it survives a kill when this returns."""
        self.known |= samples
        rows = {row: [asdict(sample) for sample in of] for row, of in samples.items()}
        line = json.dumps({"request": self.key, "samples": rows}) + "\n"
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)

    def forget(self) -> None:
        """The output is there."""
        self.path.unlink(missing_ok=True)
