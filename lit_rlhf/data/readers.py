"""Rows of files: which files a path means, and how they are read: JSONL, JSON, CSV, TSV, Parquet, compressed or not.

A path is a file, a pattern, a directory of shards, or the same behind an address. Files behind an address (`s3://`,
`gs://`, `https://`, `hf://`, whatever fsspec knows) are copied into the cache once, and read from there. A copy stands
for what the server says of the file: its size, its time, its ETag.

A row that can't be read is given as an `UnreadableRow`, to be counted like any other row that can't be used. Where the
rest of a file is lost (a torn archive, half a JSON array), an error names the file and how far it could be read.
"""

import bz2
import codecs
import csv
import gzip
import hashlib
import io
import json
import lzma
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from tenacity import retry, retry_if_not_exception_type, stop_after_attempt, wait_exponential

from lit_rlhf.data.conversion import Source
from lit_rlhf.data.records import UnreadableRow
from lit_rlhf.data.rows import cache_root
from lit_rlhf.data.written import refuse_one_object
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.files import near_path, whole_file
from lit_rlhf.options import check_option, is_text

_MAGIC = re.compile(r"[*?\[]")
_SPLITS = re.compile(r"(?<![a-z])(train|test|validation|valid|val|dev|eval)(?![a-z])")
_PASSING = {"name", "url", "type", "mimetype", "partial"}
"""What a server says of a file that may differ while the content doesn't, such as where it redirects to."""
_GONE = (FileNotFoundError, PermissionError, IsADirectoryError)
T = TypeVar("T")
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


class FileSource(Source):
    """Rows of files: JSONL, JSON (an array of objects), CSV, TSV or Parquet, by suffix; text files may be compressed.

    CSV and TSV need a header line, and all their values are text. Rows are counted from 1 in messages. A row that its
    file holds in no readable form is a row that can't be used; a file that is torn ends the run.

    Args:
        path: A file, a pattern (`data/*.jsonl.gz`), a directory of shards, the address of one of these (`s3://`,
            `gs://`, `hf://`, `https://`, whatever fsspec knows), or several, read one after the other. Files behind an
            address are copied into the cache once and read from there.
        encoding: Of text files.
        storage_options: What fsspec is told of addresses, such as `{anon: true}`; keys are better left where its
            packages look for them.

    Raises:
        ConfigurationError: A path or an encoding that is none, or an address that needs a package.
        DataError: No such file, or a suffix that says nothing; while loading: a file that is torn.
    """

    def __init__(
        self,
        path: str | list[str],
        encoding: str = "utf-8",
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        paths = path if isinstance(path, list | tuple) else [path]
        valid = bool(paths) and all(is_path(p) for p in paths)
        check_option(valid, self, "path", path, "a path, or a list of one or more")
        try:
            codecs.lookup(encoding)
            known = True
        except (LookupError, TypeError, ValueError):
            known = False
        check_option(known, self, "encoding", encoding, "one that Python knows")
        given: object = storage_options
        valid = given is None or isinstance(given, Mapping)
        check_option(valid, self, "storage_options", given, "a mapping, or left out")
        self.paths = [str(path) for path in paths]
        self.encoding, self.storage_options = encoding, storage_options or {}
        self._files: list[DataFile] = []
        self._starts: list[int] = []

    def files(self) -> list[DataFile]:
        """The files there are now, of each path in the order of their names.

        Raises:
            DataError: There is none, or which of a directory's files are meant can't be known.
            ConfigurationError: An address needs a package that isn't installed.
        """
        found: list[DataFile] = []
        for path in self.paths:
            found += (
                _fetch_files(path, self.storage_options) if "://" in path else _local_files(path)
            )
        return found

    def load(self) -> Iterator[Mapping[str, Any]]:
        """Read the files row by row."""
        self._files, self._starts, count = self.files(), [], 0
        for file in self._files:
            self._starts.append(count)
            for row in read_rows(file, self.encoding):
                yield row
                count += 1

    def fingerprint(self) -> str:
        """Hash the bytes of the files, their kinds and their encoding."""
        paths = [file.path for file in self.files()]
        return hash_files(paths, [*(kind_of(path.name) for path in paths), self.encoding])

    def locate(self, row: int) -> str:
        """File and row within it."""
        if not self._starts:
            return f"{self}, row {row + 1}"
        index = bisect_right(self._starts, row) - 1
        return f"{self._files[index]}, row {row - self._starts[index] + 1}"

    def __str__(self) -> str:
        """The paths."""
        return ", ".join(self.paths)


def kind_of(name: str) -> str:
    """The suffix that says what a file holds, without that of a compression."""
    name = name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def _local_files(path: str) -> list[DataFile]:
    place = Path(path).expanduser()
    if place.is_dir():
        names = [str(entry) for entry in place.iterdir() if entry.is_file()]
        found = _shards(names, path, map(str, place.glob("*/**/*")))
    elif place.is_file() or not _MAGIC.search(path):
        found = [str(place)]
    else:
        matches = Path(place.anchor).glob(str(place.relative_to(place.anchor)))
        found = _matches([str(match) for match in matches if match.is_file()], path)
    for name in found:
        if not Path(name).is_file():
            raise DataError(
                f"There is no file {name} (looked in {Path.cwd()}).{near_path(name)} Give the path of an existing file."
            )
        _check_kind(Path(name).name, name)
    return [DataFile(Path(name), name) for name in found]


def _check_kind(title: str, name: str) -> None:
    if kind_of(title) not in KINDS:
        raise DataError(
            f"Can't tell from its name what {name} holds. Known suffixes: {', '.join(KINDS)}, and "
            f"{', '.join(COMPRESSIONS)} after those of text files. Rename it, or convert it; a `datasets` "
            "directory is read by DirectorySource."
        )


def _matches(names: Sequence[str], pattern: str) -> list[str]:
    if not names:
        raise DataError(
            f"No file matches {pattern} (looked in {Path.cwd()}). Mend the pattern, or give the path of a file."
        )
    return sorted(names)


def _shards(names: Sequence[str], directory: str, below: Iterable[str] = ()) -> list[str]:
    """Those of a directory's files that are its data; others, such as a README, are not."""
    files = [PurePosixPath(name) for name in sorted(names)]
    if any(file.suffix == ".arrow" for file in files):
        raise DataError(
            f"{directory} was written by `save_to_disk` of the datasets library: read it with DirectorySource."
        )
    data = [f for f in files if kind_of(f.name) in KINDS and not f.name.startswith((".", "_"))]
    if not data:
        some = islice((name for name in below if kind_of(name) in KINDS), 1_000)
        deeper = [PurePosixPath(name) for name in some]
        pattern = f"{directory.rstrip('/')}/**/*.jsonl"
        if deeper:
            where = deeper[0].parent
            parents = {file.parent for file in deeper}
            if len(parents) > 1 and not any(_SPLITS.search(each.name.lower()) for each in parents):
                where = PurePosixPath(directory) / "**"
            split = _SPLITS.search(deeper[0].name.lower())
            pattern = f"{where}/*{f'{split[0]}*' if split else ''}{kind_of(deeper[0].name)}"
        raise DataError(
            f"{directory} holds no file with a known suffix ({', '.join(KINDS)}). Files of its directories are "
            f"read by a pattern such as {pattern}."
        )
    kinds = sorted({kind_of(file.name) for file in data})
    splits = sorted({split for file in data for split in _SPLITS.findall(file.name.lower())})
    for what, several in (("kinds", kinds), ("splits", splits)):
        if len(several) > 1:
            meant = "*" if what == "kinds" else f"*{'train' if 'train' in several else several[0]}*"
            raise DataError(
                f"{directory} holds files of several {what} ({', '.join(several)}). Say which are meant by a pattern "
                f"such as {directory.rstrip('/')}/{meant}{kinds[-1]}."
            )
    return [str(file) for file in data]


def hash_files(paths: Sequence[Path], labels: Sequence[str]) -> str:
    """Hash the bytes of files, and labels."""
    digest = hashlib.sha256(json.dumps(list(labels)).encode())
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def is_path(value: object) -> bool:
    """Whether it can be one."""
    return is_text(value) or isinstance(value, Path)


# -- addresses --------------------------------------------------------------------------------------------------------


def _fetch_files(address: str, storage_options: Mapping[str, Any]) -> list[DataFile]:
    import fsspec

    scheme = address.partition("://")[0].lower()
    try:
        system, place = fsspec.url_to_fs(address, **storage_options)
    except ImportError as error:
        raise ConfigurationError(
            f"{address} can't be read with what is installed: {error}."
        ) from error
    except ValueError as error:
        raise ConfigurationError(
            f"{address} can't be read: {' '.join(str(error).split())}."
        ) from error
    over_http = scheme in ("http", "https")

    def names() -> list[str]:
        # In an address of the web, ? begins a query, and there are no directories.
        if "*" in place or (_MAGIC.search(place) and not over_http):
            return _matches([str(name) for name in system.glob(place)], address)
        if not over_http and system.isdir(place):
            listed = [
                each["name"] for each in system.ls(place, detail=True) if each["type"] == "file"
            ]
            return _shards(listed, address)
        return [place]

    return [_fetch(system, name, scheme) for name in _asking(address, names)]


def _fetch(system: Any, name: str, scheme: str) -> DataFile:
    address = name if "://" in name else f"{scheme}://{name.lstrip('/')}"
    title = PurePosixPath(urlsplit(address).path).name
    shown = address.partition("?")[0]  # what is signed or secret stands behind
    _check_kind(title, shown)
    told = _asking(shown, lambda: system.info(name))
    facts = {key: str(value) for key, value in told.items() if key not in _PASSING}
    key = hashlib.sha256(json.dumps([address, facts], sort_keys=True).encode()).hexdigest()
    copy = cache_root(None) / "downloads" / key[:32] / title
    if not copy.is_file():
        with whole_file(
            copy,
            f"The copy of {shown}",
            told.get("size") or 0,
            "another place for the cache, by the environment variable LIT_RLHF_CACHE",
            DataError,
        ) as fresh:
            _asking(shown, lambda: system.get_file(name, str(fresh)))
            size, wanted = fresh.stat().st_size, told.get("size")
            if wanted is not None and size != wanted:
                raise DataError(f"{shown} came with {size} of its {wanted} bytes. Try again.")
    return DataFile(copy, shown)


def _asking(address: str, ask: Callable[[], T]) -> T:
    """What a server answers; a connection that fails is tried three times."""
    again = retry(
        stop=stop_after_attempt(3),
        wait=wait_exponential(0.5),
        retry=retry_if_not_exception_type((*_GONE, DataError)),
        reraise=True,
    )
    try:
        return again(ask)()
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"There is no file {address}, or its server can't be reached.") from error
    except Exception as error:  # each of fsspec's systems raises kinds of its own
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{address} can't be fetched: {text}.") from error


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
        whole = None
        with suppress(ValueError, RecursionError):
            whole = json.loads(text)
        refuse_one_object(whole, str(data))
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
