"""What a command that was killed had done: kept beside the file that it will write."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from lit_rlhf.cli.output import progress
from lit_rlhf.files import writing


class Unfinished:
    """What was found for each row so far, a batch to each line of a hidden file beside the output.

    It goes when the output is whole. A kill loses the batch in work alone. Lines of another request don't count.

    Args:
        output: The file to be written; without one nothing is kept.
        request: All that decides what is found.

    Attributes:
        known: What was found, as JSON holds it, by the index of its row.

    Example:
        >>> import tempfile
        >>> output = Path(tempfile.mkdtemp()) / "out.jsonl"
        >>> Unfinished(output, "a").add({0: 0.5})
        >>> Unfinished(output, "a").known, Unfinished(output, "b").known
        ({0: 0.5}, {})
    """

    def __init__(self, output: Path | None, request: Any) -> None:
        self.path = None if output is None else output.with_name(f".{output.name}.unfinished")
        self.key = hashlib.sha256(json.dumps(request, default=str).encode()).hexdigest()
        self.known: dict[int, Any] = {}
        if self.path is None or not self.path.is_file():
            return
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        os.truncate(self.path, whole)  # of a line cut by a kill or a full disk nothing is left
        for line in map(json.loads, text[:whole].splitlines()):
            if line["request"] == self.key:
                self.known |= {int(row): value for row, value in line["rows"].items()}

    def add(self, rows: Mapping[int, Any]) -> None:
        """Keep a batch; it survives a kill when this returns."""
        self.known |= rows
        if self.path is None:
            return
        line = json.dumps({"request": self.key, "rows": dict(rows)}) + "\n"
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)

    def forget(self) -> None:
        """The output is there."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def batches_left(loader: DataLoader[Any], unfinished: Unfinished, what: str) -> Iterator[Any]:
    """The batches not all of whose rows are known, with a progress bar.

    Whole batches alone: beside other rows, numbers would round in other ways.
    """
    with progress(what, len(loader)) as tell:
        for count, batch in enumerate(loader, start=1):
            if not unfinished.known.keys() >= set(batch["index"].tolist()):
                yield batch
            tell(count)
