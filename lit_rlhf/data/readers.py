"""Files to rows: JSONL, JSON, CSV, TSV and Parquet, compressed or not.

A row that can't be read is given as an `UnreadableRow`, to be counted like any other row that can't be used. Where the
rest of a file is lost (a torn archive, half a JSON array), an error names the file and how far it could be read.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import IO, Any

from lit_rlhf.data.records import UnreadableRow
from lit_rlhf.errors import DataError

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_UNDECODED = re.compile("[\udc80-\udcff]")  # what bytes that are no text become on reading
_SEPARATOR = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)
"""The line that tells Excel what parts the fields: it stands above the header, and is no row."""


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    # Imported where it is needed, for that takes a while.
    ".zst": lambda path: import_module("pyarrow").input_stream(str(path), compression="zstd"),
}


@dataclass(frozen=True)
class DataFile:
    """A file on this machine.

    Attributes:
        path: Where it lies; its suffix says what it holds.
        name: What messages call it: the path as it was given, or the address that it was fetched from.
    """

    path: Path
    name: str

    def __str__(self) -> str:
        return self.name


def kind_of(name: str) -> str:
    """The suffix that says what a file holds, without that of a compression."""
    name = name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def read_rows(data: DataFile, encoding: str) -> Iterator[Mapping[str, Any]]:
    """Go through the rows of a file.

    Args:
        data: The file.
        encoding: Of text.

    Raises:
        DataError: The file can't be read, or not to its end.
    """
    count = 0
    try:
        for row in _KINDS[kind_of(data.path.name)](data, encoding):
            yield row
            count += 1
    except DataError:
        raise
    except Exception as error:  # zlib, lzma, pyarrow and codecs raise kinds of their own
        where = f"after row {count}" if count else "from its first row on"
        text = " ".join(str(error).split())[:300] or type(error).__name__
        if kind_of(data.path.name) == ".parquet":
            raise DataError(
                f"{data} is no Parquet file, or a torn one: it can't be read {where} ({text}). "
                "Write or download it again."
            ) from error
        raise DataError(
            f"{data} can't be read {where}: {text}. It is torn, or no {encoding} text: write or download it again, or "
            "set `encoding`."
        ) from error


def _open_text(data: DataFile, encoding: str) -> IO[str]:
    # A byte-order mark is no text. Bytes that are no text are kept as such, so that one row alone is lost by them.
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
    opened = COMPRESSIONS.get(data.path.suffix.lower(), Path.open)
    binary = data.path.open("rb") if opened is Path.open else opened(data.path)
    return io.TextIOWrapper(binary, encoding=encoding, errors="surrogateescape", newline="")


def _read_jsonl(data: DataFile, encoding: str) -> Iterator[Mapping[str, Any]]:
    with _open_text(data, encoding) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse_line(line, f"{data}, line {number}", encoding)


def _parse_line(line: str, where: str, encoding: str) -> Mapping[str, Any]:
    if not line.isascii() and _UNDECODED.search(line):
        return _undecoded(where, encoding)
    try:
        return _object(json.loads(line), where)
    except (ValueError, RecursionError) as error:
        return UnreadableRow(
            "no JSON", f"{where} is no JSON: {error}. It starts with {line[:60]!r}"
        )


def _read_json(data: DataFile, encoding: str) -> Iterator[Mapping[str, Any]]:
    with _open_text(data, encoding) as file:
        text = file.read()
    if not text.lstrip().startswith("["):  # objects, one on each line
        yield from _read_jsonl(data, encoding)
        return
    if not text.isascii() and _UNDECODED.search(text):
        raise DataError(f"{data} is no {encoding} text. Set `encoding`.")
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{data} is no JSON: {error}.") from error
    yield from (
        _object(row, f"{data}, element {number}") for number, row in enumerate(rows, start=1)
    )


def _object(row: Any, where: str) -> Mapping[str, Any]:
    if isinstance(row, dict):
        return row
    return UnreadableRow(
        "no object", f"{where} is a {type(row).__name__}, not an object with columns"
    )


def _undecoded(where: str, encoding: str) -> UnreadableRow:
    return UnreadableRow(f"no {encoding} text", f"{where} is no {encoding} text; set `encoding`")


def _read_csv(data: DataFile, encoding: str) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # answers may be longer than its 131,072 characters
    with _open_text(data, encoding) as file:
        first = file.readline()
        above = 0  # lines
        if said := _SEPARATOR.fullmatch(first):
            first, delimiter, above = file.readline(), said[1], 1
        elif kind_of(data.path.name) == ".tsv":
            delimiter = "\t"
        elif len(next(csv.reader([first]), [])) > 1:
            delimiter = ","
        else:  # what spreadsheets write in its place
            delimiter = next((mark for mark in ";\t|" if mark in first), ",")
        reader = csv.reader(chain([first], file), delimiter=delimiter, strict=True)
        filled = filter(None, reader)  # lines that hold something
        try:
            header: list[str] = next(filled, [])
            if _UNDECODED.search("".join(header)):
                raise DataError(
                    f"{data}, line {above + reader.line_num}: the header is no {encoding} text. Set `encoding`."
                )
            if len(set(header)) < len(header):
                raise DataError(f"{data}: the header names a column twice: {header}.")
            for values in filled:
                where = f"{data}, line {above + reader.line_num}"
                if len(values) != len(header):
                    yield UnreadableRow(
                        "more or fewer fields than the header",
                        f"{where} has more or fewer fields than the header, which names {header}. Quote text that "
                        f"holds the delimiter {delimiter!r} or a line break",
                    )
                elif any(not value.isascii() and _UNDECODED.search(value) for value in values):
                    yield _undecoded(where, encoding)
                else:
                    yield dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise DataError(f"{data}, near line {above + reader.line_num}: {error}.") from error


def _read_parquet(data: DataFile, encoding: str) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet

    del encoding
    # Pages as they are needed, in place of a whole row group, which may be all of the file.
    few = {"pre_buffer": False, "buffer_size": 1 << 20}
    with pyarrow.parquet.ParquetFile(data.path, **few) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


_KINDS: dict[str, Callable[[DataFile, str], Iterator[Mapping[str, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
