"""Rows from elsewhere than files: memory, directories of the `datasets` library, its hub."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lit_rlhf.data.conversion import Source
from lit_rlhf.data.readers import FileSource, hash_files, is_path
from lit_rlhf.data.records import shorten
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.files import is_saved_by_datasets, near_path
from lit_rlhf.options import check_option, is_text


class DirectorySource(Source):
    """A directory that `datasets.Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Args:
        path: The directory.
        split: Which split, where the directory holds several.
    """

    def __init__(self, path: str, split: str | None = None) -> None:
        check_option(is_path(path), self, "path", path, "a directory")
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
        return hash_files(files, [*names, str(self.split)])

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
        check_option(is_path(name), self, "name", name, "organisation/name, or a directory")
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
        return hash_files(files, [self.split]) if files else super().fingerprint()

    def _load(self) -> Any:
        import datasets

        try:
            return datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision
            )
        except Exception as error:
            here = Path(self.name).is_dir()  # `datasets` looks nowhere else then
            asked = (
                "It is a directory on this machine: does it hold data files?"
                if here
                else f"No such file or directory (looked in {Path.cwd()}).{near_path(self.name)} It was taken for a "
                "name on the hub: is that right, and is the hub (or the local cache, when offline) reachable?"
            )
            raise DataError(
                f"Can't load the data set {self}: {asked} Files on this machine are read by FileSource. The cause: "
                f"{' '.join(str(error).split())[:400].rstrip('.')}."
            ) from error

    def __str__(self) -> str:
        """Name, configuration, revision and split."""
        parts = [self.name, *(part for part in (self.config, self.revision) if part)]
        return f"{':'.join(parts)}[{self.split}]"


_ROWS_OF = {"to_list": "to_list()", "to_dicts": "to_dicts()", "to_dict": "to_dict('records')"}
"""How data sets of `datasets`, and frames of Polars and pandas, are told, and become lists of rows."""


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
        way = next((way for method, way in _ROWS_OF.items() if hasattr(given, method)), None)
        if way is not None:
            allowed += f": rows.{way} makes one of this {type(given).__name__}"
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


def local_source(path: str | list[str]) -> DirectorySource | FileSource:
    """What `save_to_disk` of the `datasets` library wrote, or files, by what lies at a path."""
    if isinstance(path, str) and is_saved_by_datasets(Path(path).expanduser()):
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


def _is_name(value: object) -> bool:
    return value is None or is_text(value)
