"""Where rows come from: files, directories of the `datasets` library, its hub, and memory."""

import csv
import gzip
import hashlib
import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from lit_rlhf.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


class Source(ABC):
    """One split of a data set: rows, and a fingerprint of their content.

    A new kind of source overrides `load`, and `fingerprint` where hashing all rows at each start would be slow.
    """

    @abstractmethod
    def load(self) -> Iterable[Mapping[str, Any]]:
        """Go through the rows, in the same order each time."""

    def fingerprint(self) -> str:
        """Hash the content: equal content, equal fingerprint, wherever it lies."""
        return _hash_rows(self.load())

    def locate(self, row: int) -> str:
        """Say where a row is, for error messages.

        Args:
            row: Counted from 0.
        """
        return f"{self}, row {row + 1}"

    def __str__(self) -> str:
        """What messages call the source."""
        return type(self).__name__


class FileSource(Source):
    """Rows of files: JSONL, JSON (an array of objects), CSV, TSV or Parquet, by suffix; text files may be gzipped.

    CSV and TSV need a header line, and all their values are text. Rows are counted from 1 in messages.

    Args:
        path: A file, or several, read one after the other.
        encoding: Of text files.

    Raises:
        DataError: No such file, or a suffix that says nothing; while loading: a line that can't be parsed.
    """

    def __init__(self, path: str | list[str], encoding: str = "utf-8") -> None:
        self.paths = [Path(p).expanduser() for p in ([path] if isinstance(path, str) else path)]
        self.encoding = encoding
        self._starts: list[int] = []

    def load(self) -> Iterator[Mapping[str, Any]]:
        """Read the files row by row."""
        self._check()
        self._starts, count = [], 0
        for path in self.paths:
            self._starts.append(count)
            for row in self._read(path):
                yield row
                count += 1

    def fingerprint(self) -> str:
        """Hash the bytes of the files and their kinds."""
        self._check()
        return _hash_files(self.paths, [_suffix(path) for path in self.paths])

    def locate(self, row: int) -> str:
        """File and row within it."""
        index = max(bisect_right(self._starts, row) - 1, 0)
        start = self._starts[index] if self._starts else 0
        return f"{self.paths[index]}, row {row - start + 1}"

    def __str__(self) -> str:
        """The paths."""
        return ", ".join(str(path) for path in self.paths)

    def _check(self) -> None:
        for path in self.paths:
            if not path.is_file():
                raise DataError(
                    f"There is no file {path} (looked in {Path.cwd()}). Give the path of an existing file."
                )
            if _suffix(path) not in SUFFIXES:
                raise DataError(
                    f"Can't tell from its name what {path} holds. Known suffixes: {', '.join(SUFFIXES)}, and .gz after "
                    "those of text files. Rename it, or convert it; a `datasets` directory is read by DirectorySource."
                )

    def _read(self, path: Path) -> Iterator[Mapping[str, Any]]:
        suffix = _suffix(path)
        if suffix == ".parquet":
            yield from _read_parquet(path)
            return
        try:
            with _open_text(path, self.encoding) as file:
                if suffix in (".csv", ".tsv"):
                    yield from _read_csv(path, file, "\t" if suffix == ".tsv" else ",")
                elif suffix == ".json" and file.read(4096).lstrip().startswith("["):
                    file.seek(0)
                    yield from _read_json(path, file)
                else:
                    file.seek(0)
                    yield from _read_jsonl(path, file)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is no {self.encoding} text: {error}. Set `encoding`."
            ) from error
        except (OSError, EOFError) as error:
            raise DataError(f"{path} can't be read: {error}.") from error


class DirectorySource(Source):
    """A directory that `datasets.Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Args:
        path: The directory.
        split: Which split, where the directory holds several.
    """

    def __init__(self, path: str, split: str | None = None) -> None:
        self.path = Path(path).expanduser()
        self.split = split

    def load(self) -> Iterable[Mapping[str, Any]]:
        """Memory-map the directory."""
        import datasets  # noqa: PLC0415  (a second of start-up that --help shall not pay)

        try:
            loaded = datasets.load_from_disk(str(self.path))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path} is no directory that `save_to_disk` of the datasets library wrote: {error}. "
                "For files use FileSource, for the hub HubSource."
            ) from error
        return _pick_split(loaded, self.split, str(self))

    def fingerprint(self) -> str:
        """Hash the bytes of the Arrow files."""
        files = sorted(
            file for file in self.path.rglob("*.arrow") if not file.name.startswith("cache-")
        )
        if not files:
            raise DataError(
                f"{self.path} holds no Arrow files: did `save_to_disk` write it? Files: see FileSource."
            )
        return _hash_files(
            files, [*(str(file.relative_to(self.path)) for file in files), str(self.split)]
        )

    def __str__(self) -> str:
        """The path and the split."""
        return f"{self.path}" if self.split is None else f"{self.path}[{self.split}]"


class HubSource(Source):
    """A data set of the hub, or a local directory that `datasets.load_dataset` reads.

    Args:
        name: `organisation/name`, or a directory.
        config: Which configuration, where the data set has several.
        split: Which split.
        revision: Branch, tag or commit. Pin a commit for a run that shall be repeatable.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.split = split
        self.revision = revision

    def load(self) -> Iterable[Mapping[str, Any]]:
        """Download, or take from the local cache of the `datasets` library."""
        return _pick_split(self._load(), None, str(self))

    def fingerprint(self) -> str:
        """Hash the bytes of the Arrow files that the `datasets` library keeps, and the name of the split."""
        loaded = self._load()
        files = [Path(file["filename"]) for file in loaded.cache_files]
        return _hash_files(files, [self.split]) if files else super().fingerprint()

    def _load(self) -> Any:
        import datasets  # noqa: PLC0415  (see above)

        try:
            return datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision
            )
        except Exception as error:
            raise DataError(
                f"Can't load the data set {self}: {' '.join(str(error).split())[:400]}. Is the name right, and is the "
                "hub (or the local cache, when offline) reachable? Files on this machine are read by FileSource."
            ) from error

    def __str__(self) -> str:
        """Name, configuration, revision and split."""
        parts = [self.name, *(part for part in (self.config, self.revision) if part)]
        return f"{':'.join(parts)}[{self.split}]"


class RowsSource(Source):
    """Rows in memory.

    Args:
        rows: One mapping from column to value per row.
        name: What messages call them.

    Example:
        >>> source = RowsSource([{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}])
        >>> source.locate(0)
        'rows in memory, row 1'
    """

    def __init__(self, rows: list[dict[str, Any]], name: str = "rows in memory") -> None:
        self.rows = rows
        self.name = name

    def load(self) -> Iterable[Mapping[str, Any]]:
        """The rows."""
        return self.rows

    def __str__(self) -> str:
        """The name."""
        return self.name

    def __deepcopy__(self, memo: dict[int, Any]) -> "RowsSource":
        """Itself: `save_hyperparameters` copies its arguments, and rows may be many."""
        return self


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _open_text(path: Path, encoding: str) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return path.open(encoding=encoding, newline="")


def _read_jsonl(path: Path, lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number} is no JSON: {error}. It starts with {line[:60]!r}."
            ) from error
        yield _object(row, f"{path}, line {number}")


def _read_json(path: Path, file: TextIO) -> Iterator[Mapping[str, Any]]:
    try:
        rows = json.load(file)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is no JSON: {error}.") from error
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"{path}, element {number}")


def _object(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where} is a {type(row).__name__}, not an object with columns.")
    return row


def _read_csv(path: Path, file: TextIO, delimiter: str) -> Iterator[Mapping[str, Any]]:
    reader = csv.DictReader(file, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path}, line {reader.line_num} has more or fewer fields than the header, which names "
                    f"{reader.fieldnames}. Quote text that holds the delimiter {delimiter!r} or a line break."
                )
            yield row
    except csv.Error as error:
        raise DataError(f"{path}, near line {reader.line_num + 1}: {error}.") from error


def _read_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow  # noqa: PLC0415  (see above)
    import pyarrow.parquet  # noqa: PLC0415

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is no Parquet file, or a torn one: {error}.") from error


def _pick_split(loaded: Any, split: str | None, name: str) -> Iterable[Mapping[str, Any]]:
    if hasattr(loaded, "keys"):
        if split is None or split not in loaded:
            raise DataError(
                f"{name} holds the splits {sorted(loaded)}; set `split` to one of them (it is {split!r})."
            )
        loaded = loaded[split]
    elif split is not None:
        raise DataError(f"{name} holds one split without a name; leave `split` out.")
    rows: Iterable[Mapping[str, Any]] = loaded
    return rows


def _hash_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(
            json.dumps(row, sort_keys=True, default=repr, ensure_ascii=False).encode(
                errors="surrogatepass"
            )
        )
        digest.update(b"\n")
    return digest.hexdigest()


def _hash_files(paths: Sequence[Path], labels: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps(list(labels)).encode())
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
