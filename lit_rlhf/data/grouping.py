"""A source whose neighbouring rows a format reads together."""

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from lit_rlhf.data.formats import Format, group_rows
from lit_rlhf.data.records import rows_of_group
from lit_rlhf.data.sources import Source


class _GroupedSource(Source):
    """The rows of a source, neighbours that belong together as one; messages name the first row of each group.

    Args:
        source: Where the rows come from.
        reader: The format, which says what belongs together.
    """

    def __init__(self, source: Source, reader: Format) -> None:
        self.source, self.reader = source, reader
        self._starts = array("q")

    def load(self) -> Iterator[Mapping[str, Any]]:
        """Go through the groups."""
        self._starts, count = array("q"), 0
        for row in group_rows(self.source.load(), self.reader):
            self._starts.append(count)
            yield row
            count += len(rows_of_group(row))

    def fingerprint(self) -> str:
        """That of the rows."""
        return self.source.fingerprint()

    def locate(self, row: int) -> str:
        """Where the first row of a group is."""
        return self.source.locate(self._starts[row])

    def __str__(self) -> str:
        """What messages call the source."""
        return str(self.source)


def grouped(source: Source, reader: Format) -> Source:
    """The source as a format reads it: itself, where rows stand alone."""
    return source if reader.groups_by() is None else _GroupedSource(source, reader)
