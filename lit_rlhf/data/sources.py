"""Where rows come from: files, directories of the `datasets` library, its hub, and memory."""

import codecs
import hashlib
import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.data.readers import DataFile, find_files, kind_of, read_rows
from lit_rlhf.data.records import UnreadableRow, shorten
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.options import check_option, is_text


class Source(ABC):
    """One split of a data set: rows, and a fingerprint of their content.

    A new kind of source overrides `load`, and `fingerprint` where hashing all rows at each start would be slow.
    """

    @abstractmethod
    def load(self) -> Iterable[Mapping[str, Any]]:
        """Go through the rows, in the same order each time; for one that can't be read, give an `UnreadableRow`."""

    def fingerprint(self) -> str:
        """Hash the content: equal content, equal fingerprint, wherever it lies."""
        digest = hashlib.sha256()
        for row in self.load():
            content = [row.error.reason] if isinstance(row, UnreadableRow) else row
            try:
                text = json.dumps(content, sort_keys=True, default=repr)
            except (TypeError, ValueError, RecursionError):  # keys of several types; a circle
                text = shorten(content, limit=1_000_000)
            digest.update(text.encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def cache_key(self) -> str:
        """What the cache of tokens goes by where a source is an option of something else."""
        return self.fingerprint()

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
        valid = bool(paths) and all(_is_path(p) for p in paths)
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
        """The files there are now."""
        return [file for path in self.paths for file in find_files(path, self.storage_options)]

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
        return _hash_files(paths, [*(kind_of(path.name) for path in paths), self.encoding])

    def locate(self, row: int) -> str:
        """File and row within it."""
        if not self._starts:
            return f"{self}, row {row + 1}"
        index = bisect_right(self._starts, row) - 1
        return f"{self._files[index]}, row {row - self._starts[index] + 1}"

    def __str__(self) -> str:
        """The paths."""
        return ", ".join(self.paths)


class DirectorySource(Source):
    """A directory that `datasets.Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Args:
        path: The directory.
        split: Which split, where the directory holds several.
    """

    def __init__(self, path: str, split: str | None = None) -> None:
        check_option(_is_path(path), self, "path", path, "a directory")
        check_option(_is_name(split), self, "split", split, "the name of a split or left out")
        self.path = Path(path).expanduser()
        self.split = split

    def load(self) -> Iterable[Mapping[str, Any]]:
        """Memory-map the directory."""
        import datasets

        try:
            loaded = datasets.load_from_disk(str(self.path))
        except Exception as error:  # pyarrow and datasets raise many kinds
            raise DataError(
                f"{self.path} is no directory that `save_to_disk` of the datasets library wrote: {error}. "
                "For files use FileSource, for the hub HubSource."
            ) from error
        return _pick_split(loaded, self.split, str(self))

    def fingerprint(self) -> str:
        """Hash the bytes of the Arrow files."""
        found = self.path.rglob("*.arrow")
        files = sorted(file for file in found if not file.name.startswith("cache-"))
        if not files:
            raise DataError(
                f"{self.path} holds no Arrow files: did `save_to_disk` write it? Files: see FileSource."
            )
        names = [str(file.relative_to(self.path)) for file in files]
        return _hash_files(files, [*names, str(self.split)])

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
        check_option(_is_path(name), self, "name", name, "organisation/name, or a directory")
        check_option(is_text(split), self, "split", split, "the name of a split")
        for option, value in (("config", config), ("revision", revision)):
            check_option(_is_name(value), self, option, value, "a name or left out")
        self.name, self.config, self.split, self.revision = str(name), config, split, revision

    def load(self) -> Iterable[Mapping[str, Any]]:
        """Download, or take from the local cache of the `datasets` library."""
        return _pick_split(self._load(), None, str(self))

    def fingerprint(self) -> str:
        """Hash the bytes of the Arrow files that the `datasets` library keeps, and the name of the split."""
        loaded = self._load()
        files = [Path(file["filename"]) for file in loaded.cache_files]
        return _hash_files(files, [self.split]) if files else super().fingerprint()

    def _load(self) -> Any:
        import datasets

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
        given: object = rows
        valid = isinstance(given, list | tuple) and all(isinstance(row, Mapping) for row in given)
        allowed = "a list of mappings from column to value"
        check_option(valid, self, "rows", rows if valid else shorten(rows), allowed)
        check_option(is_text(name), self, "name", name, "text")
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


def rows_of(source: Source) -> Iterator[Mapping[str, Any]]:
    """Go through the rows of a source.

    Raises:
        ConfigurationError: A source of one's own gives something else than rows.
        DataError: The system refuses, or what is read ends too early.
    """
    try:
        given: object = source.load()
        for row in given if isinstance(given, Iterable) else [given]:
            if not isinstance(row, Mapping):
                raise ConfigurationError(
                    f"{type(source).__name__}.load gave {shorten(row)}: it must give rows one after the other, each a "
                    "mapping from column to value."
                )
            yield row
    except (OSError, EOFError) as error:
        raise DataError(f"{source} can't be read: {error}.") from error


def local_source(path: str | list[str]) -> DirectorySource | FileSource:
    """What `save_to_disk` of the `datasets` library wrote, or files, by what lies at a path."""
    saved = ("state.json", "dataset_dict.json")
    if isinstance(path, str) and any((Path(path).expanduser() / name).is_file() for name in saved):
        return DirectorySource(path)
    return FileSource(path)


def given_source(path: str | list[str] | None, source: Source | None, complaint: str) -> Source:
    """What is given as a path or as a source.

    Raises:
        ConfigurationError: Both or neither are; says `complaint`.
    """
    if path is not None and source is None:
        return local_source(path)
    if source is not None and path is None:
        return source
    raise ConfigurationError(complaint)


def _pick_split(loaded: Any, split: str | None, name: str) -> Iterable[Mapping[str, Any]]:
    if hasattr(loaded, "keys"):
        if split is None or split not in loaded:
            raise DataError(
                f"{name} holds the splits {sorted(loaded)}; set `split` to one of them (it is {split!r}), or give the "
                "directory of one as the path."
            )
        loaded = loaded[split]
    elif split is not None:
        raise DataError(f"{name} holds one split without a name; leave `split` out.")
    rows: Iterable[Mapping[str, Any]] = loaded
    return rows


def _hash_files(paths: Sequence[Path], labels: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps(list(labels)).encode())
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _is_name(value: object) -> bool:
    return value is None or is_text(value)


def _is_path(value: object) -> bool:
    return is_text(value) or isinstance(value, Path)
