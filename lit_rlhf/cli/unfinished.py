"""What `generate` and `score` share: what was done when one was killed, and prompts written as the model knows them."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from lit_rlhf.cli.output import progress
from lit_rlhf.data import AsChat, Format
from lit_rlhf.data.written import written_messages
from lit_rlhf.evaluation.scorers import Layout
from lit_rlhf.files import unfinished_file, writing
from lit_rlhf.models import Backbone


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
        self.path = None if output is None else unfinished_file(output)
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


def unfinished_of(
    output: Path | None, request: str, rows: Sequence[Any], weights: Callable[[], Any]
) -> Unfinished:
    """What an earlier call had found for the same request of the same rows, by the same weights."""
    if output is None or not request:
        return Unfinished(None, request)
    return Unfinished(output, [request, rows, weights()])


def batches_left(loader: DataLoader[Any], unfinished: Unfinished, what: str) -> Iterator[Any]:
    """The batches not all of whose rows are known, with a progress bar.

    Whole batches alone: beside other rows, numbers would round in other ways.
    """
    with progress(what, len(loader)) as tell:
        for count, batch in enumerate(loader, start=1):
            if not unfinished.known.keys() >= set(batch["index"].tolist()):
                yield batch
            tell(count)


def as_learned(
    format: Format, layout: Layout, backbone: Backbone, prompts: Iterable[Any]
) -> Format:
    """The format, or that as chats; says so where nobody asked for them.

    Args:
        format: Of prompts that may be plain text.
        layout: As chats, or text as it stands. auto: as chats where the model has learned of chats, and the prompts
            aren't such already, as messages or as rendered text.
        backbone: The model.
        prompts: As the rows have them.
    """
    learned = backbone.prompts
    of_chats = learned is not None and learned.kind == "chat"
    system = learned.system if learned is not None and of_chats else None
    chat = AsChat(format, system=system or None)
    if layout != "auto":
        return chat if layout == "chat" else format
    texts = [each for each in prompts if isinstance(each, str) and written_messages(each) is None]
    if learned is None or not of_chats or not texts or all(map(learned.is_in, texts)):
        return format
    sys.stderr.write(
        "Prompts are written as chats, as the model has learned them (--layout text: as they stand).\n"
    )
    return chat
