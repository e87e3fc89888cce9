"""A content-addressed cache of tokenized rows: Arrow files, written whole or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lit_rlhf.errors import DataError
from lit_rlhf.files import sync

CACHE_VARIABLE = "LIT_RLHF_CACHE"
DEFAULT_CACHE = "~/.cache/lit_rlhf"
_MARKER = "complete.json"
_BUILDING = ".lit_rlhf-building-"
_STALE_SECONDS = 24 * 3600
_CHUNK = 1000
_ROWS = "rows.arrow"


def cache_root(option: str | None) -> Path:
    """Where the cache lies: the option, else the environment variable LIT_RLHF_CACHE, else ~/.cache/lit_rlhf."""
    return Path(option or os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE).expanduser()


@dataclass(frozen=True)
class Entry:
    """A finished directory of the cache.

    Args:
        path: The directory.
        meta: What was stored with the rows.
    """

    path: Path
    meta: dict[str, Any]

    def open(self) -> Any:
        """Memory-map the rows: a `datasets.Dataset`."""
        import datasets

        return datasets.Dataset.from_file(str(self.path / _ROWS))

    @property
    def checksum(self) -> str:
        """Of the rows."""
        marker = json.loads((self.path / _MARKER).read_text(encoding="utf-8"))
        return str(marker["files"][_ROWS]["sha256"])


def open_together(entries: Sequence[Entry]) -> Any:
    """Memory-map the rows of several entries as one `datasets.Dataset`, one behind the other."""
    import datasets

    return datasets.concatenate_datasets([entry.open() for entry in entries])


class TokenCache:
    """Keeps tokenized rows by key.

    An entry is written to a directory of its own beside its final place, flushed to the disk, marked complete and then
    renamed, so another process sees all of it or nothing. An entry whose marker, file sizes or checksums don't match is
    built anew.

    Args:
        root: Directory of all entries; made if it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def get_or_build(
        self,
        key: str,
        rows: Iterable[Mapping[str, Any]],
        meta: Callable[[], dict[str, Any]],
        *,
        verify: bool = True,
        rebuild: bool = False,
        schema: Any = None,
    ) -> Entry:
        """Take an entry, or make it.

        Args:
            key: Names the content.
            rows: The rows, gone through where they must be written.
            meta: Gives what is stored with them, called after the last row.
            verify: Compare the checksums of an entry that is there, not only sizes.
            rebuild: Make the entry anew if it is there.
            schema: Arrow schema of the rows; default: that of tokenized rows.

        Raises:
            DataError: The cache can't be written (no space, no permission).
        """
        entry = None if rebuild else self.find(key, verify=verify)
        if entry is not None:
            return entry
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for left in self.root.glob(f"{_BUILDING}*"):  # by a process that was killed
                with contextlib.suppress(OSError):
                    if left.is_dir() and time.time() - left.stat().st_mtime > _STALE_SECONDS:
                        shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(
                dir=self.root, prefix=_BUILDING, ignore_cleanup_errors=True
            ) as parent:
                fresh = Path(parent) / "rows"
                fresh.mkdir()
                _write_rows(fresh / _ROWS, rows, schema)
                _write_marker(fresh, meta())
                self._publish(fresh, self.root / key, replace=rebuild)
        except OSError as error:
            raise DataError(
                f"Can't write the cache of tokenized rows in {self.root}: {error}. Make room there, or point the data "
                f"option `cache_dir` or the environment variable {CACHE_VARIABLE} to another place. What was there "
                "before is unharmed."
            ) from error
        found = self.find(key, verify=False)
        assert found is not None
        return found

    def find(self, key: str, *, verify: bool) -> Entry | None:
        """Look an entry up.

        Args:
            key: Names the content.
            verify: Compare checksums too, not only sizes.
        """
        path = self.root / key
        try:
            marker = json.loads((path / _MARKER).read_text(encoding="utf-8"))
            files = [(path / name, facts) for name, facts in marker["files"].items()]
            sound = all(
                file.stat().st_size == facts["size"]
                and (not verify or _checksum(file) == facts["sha256"])
                for file, facts in files
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return Entry(path, marker["meta"]) if sound else None

    def _publish(self, fresh: Path, final: Path, *, replace: bool) -> None:
        try:
            fresh.rename(final)
        except OSError:
            # Another process was faster, or a damaged entry is in the way.
            if not replace and self.find(final.name, verify=True) is not None:
                return
            final.rename(fresh.parent / "damaged")
            fresh.rename(final)
        sync(self.root)


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]], schema: Any) -> None:
    import pyarrow as pa

    if schema is None:  # that of tokenized rows
        ids = pa.list_(pa.int32())
        numbers = [("row", pa.int64()), ("prompt_key", pa.int64()), ("length", pa.int32())]
        texts = [("prompt_ids", ids), ("completion_ids", pa.list_(ids)), ("extras", pa.string())]
        schema = pa.schema([*numbers, *texts])
    remaining = iter(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while chunk := list(islice(remaining, _CHUNK)):
            writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))


def _write_marker(path: Path, meta: dict[str, Any]) -> None:
    files = {
        file.name: {"size": file.stat().st_size, "sha256": _checksum(file)}
        for file in sorted(path.iterdir())
    }
    for name in files:
        sync(path / name)
    marker = path / _MARKER
    marker.write_text(json.dumps({"files": files, "meta": meta}), encoding="utf-8")
    sync(marker)
    sync(path)


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
