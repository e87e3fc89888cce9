"""Tokenized rows: the content-addressed cache that keeps them, and the torch data set that reads them.

The cache has Arrow files, written whole or not at all. The log-probs of a reference that go with the rows are kept
there too.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from lit_rlhf.data.records import OPTIONAL_FIELDS, required_fields
from lit_rlhf.errors import DataError
from lit_rlhf.files import sync
from lit_rlhf.seeding import stable_hash
from lit_rlhf.types import BranchedBatch, Text

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
        from datasets.table import MemoryMappedTable

        # Unlike `from_file`, it is told a fingerprint: to pickle the table for one takes longer than to open it.
        table = MemoryMappedTable.from_file(str(self.path / _ROWS))
        return datasets.Dataset(table, fingerprint=self.path.name)

    @property
    def checksum(self) -> str:
        """Of the rows."""
        marker = json.loads((self.path / _MARKER).read_text(encoding="utf-8"))
        return str(marker["files"][_ROWS]["sha256"])


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


class TokenizedRow(TypedDict):
    """A row as collators take it."""

    index: int  # position in the split
    row: int  # position in the source, counted from 0
    prompt_ids: list[int]
    completion_ids: list[list[int]]
    fields: dict[str, Any]  # margin, p_chosen, label, score, step_label, attributes, ref_logprobs
    columns: dict[str, Any]  # further columns of the data set
    given: Text | None  # the prompt as it came, of rows without completions


class TokenizedRows(Dataset[TokenizedRow]):
    """Rows of cache entries, one behind the other, or a part of them. They stay on disk, memory-mapped.

    Of a row, 4 bytes are held for its length, and 8 for its place where only a part of the rows is used.

    Args:
        entries: Where the rows lie, one entry for each source.
        positions: Which of all the rows, in order. None: all of them.

    Raises:
        DataError: The rows of two entries have different fields.
    """

    def __init__(self, entries: Sequence[Entry], positions: np.ndarray | None = None) -> None:
        import datasets

        tables = [entry.open() for entry in entries]
        self.table = tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables)
        self.positions = positions
        self.bounds = np.cumsum([0, *map(len, tables)])
        self.lengths = self._column("length")
        self.ref_logprobs: np.ndarray | None = None  # (n, K) float32, once they were computed
        # What some rows have and others lack.
        metas = [entry.meta for entry in entries]
        optional = chain.from_iterable(meta.get("optional", ()) for meta in metas)
        self.fields = {name: OPTIONAL_FIELDS[name] for name in optional}
        self.columns = dict.fromkeys(chain.from_iterable(m.get("columns", ()) for m in metas))
        self._check_fields(metas)

    def _check_fields(self, metas: Sequence[Mapping[str, Any]]) -> None:
        firsts = [self.table[int(start)] for start in self.bounds[:-1]]
        kinds = [
            required_fields(json.loads(row["extras"])["fields"], len(row["completion_ids"]))
            for row in firsts
        ]
        other = next((place for place, kind in enumerate(kinds) if kind != kinds[0]), None)
        if other is not None:
            raise DataError(
                f"The rows of {metas[0]['source']} have the fields {kinds[0]}, those of "
                f"{metas[other]['source']} {kinds[other]}: one batch can't hold both. Give one of the portions "
                "a `format` that makes the fields of the other."
            )

    def _column(self, name: str) -> np.ndarray:
        column: np.ndarray = np.asarray(self.table.data[name])
        return column if self.positions is None else column[self.positions]

    @property
    def sizes(self) -> list[int]:
        """How many of the rows are of each source."""
        bounds = self.bounds
        if self.positions is not None:
            bounds = np.searchsorted(self.positions, bounds)
        return [int(size) for size in np.diff(bounds)]

    @property
    def prompt_keys(self) -> np.ndarray:
        """(n,) int64: a hash of each row's prompt text."""
        return self._column("prompt_key")

    def most_completions(self) -> int:
        """The largest number of completions of a prompt."""
        import pyarrow.compute as pc

        counts = np.asarray(pc.list_value_length(self.table.data["completion_ids"]))
        if self.positions is not None:
            counts = counts[self.positions]
        return int(counts.max(initial=0))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenizedRow:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[TokenizedRow]:
        """Several rows at once, as torch's loaders ask for them."""
        places = indices if self.positions is None else self.positions[list(indices)]
        raw = self.table.__getitems__([int(place) for place in places])
        rows = [self._row(int(index), values) for index, values in zip(indices, raw, strict=True)]
        if self.ref_logprobs is not None:
            for row in rows:
                found = self.ref_logprobs[row["index"], : len(row["completion_ids"])]
                row["fields"]["ref_logprobs"] = found.tolist()
        return rows

    def split(self, fraction: float, seed: int) -> tuple["TokenizedRows", "TokenizedRows"]:
        """Divide by a stable hash of the prompt, so that all rows of a prompt stay together.

        Args:
            fraction: Share of prompts, in expectation, that the second part gets.
            seed: Other seeds divide otherwise.
        """
        limit = fraction * 2.0**63
        draws = (stable_hash("split", seed, int(key)) < limit for key in self.prompt_keys)
        chosen = np.fromiter(draws, dtype=bool, count=len(self))
        return self._part(~chosen), self._part(chosen)

    def _part(self, keep: np.ndarray) -> "TokenizedRows":
        part = copy(self)
        (kept,) = keep.nonzero()
        part.positions = kept if self.positions is None else self.positions[kept]
        part.lengths = self.lengths[kept]
        part.ref_logprobs = None
        return part

    def _row(self, index: int, values: dict[str, Any]) -> TokenizedRow:
        extras = json.loads(values["extras"])
        return {
            "index": index,
            "row": values["row"],
            "prompt_ids": values["prompt_ids"],
            "completion_ids": values["completion_ids"],
            "fields": {**self.fields, **extras["fields"]},
            "columns": {**self.columns, **extras["columns"]},
            "given": extras.get("given"),
        }


class ReferenceLogprobs:
    """The log-probs of one split under one reference.

    Args:
        rows: The split.
        cache: Where they are kept.
        key: Names the reference, the rows and how these were tokenized.
        collate: Makes batches.
        batch_size: Rows of a batch.
    """

    def __init__(
        self,
        rows: TokenizedRows,
        cache: TokenCache,
        key: str,
        collate: Callable[[Sequence[TokenizedRow]], BranchedBatch],
        batch_size: int,
    ) -> None:
        self.rows, self.cache, self.key = rows, cache, key
        self.collate, self.batch_size = collate, batch_size
        self.num_rows, self.num_branches = len(rows), rows.most_completions()

    def load(self) -> bool:
        """Give the rows their log-probs, if the cache has them whole."""
        entry = self.cache.find(self.key, verify=True)
        if entry is None:
            return False
        column = entry.open().data["logprobs"].combine_chunks()
        self.rows.ref_logprobs = np.asarray(column.flatten()).reshape(len(self.rows), -1)
        return True

    def save(self, logprobs: Tensor) -> None:
        """Keep log-probs (rows, K); what other processes saved before is left as it is.

        Raises:
            DataError: The cache can't be written.
        """
        import pyarrow as pa

        lines = ({"logprobs": row} for row in logprobs.float().tolist())
        schema = pa.schema([("logprobs", pa.list_(pa.float32()))])
        self.cache.get_or_build(self.key, lines, dict, schema=schema)

    def batches(self, rank: int, world_size: int) -> Iterator[BranchedBatch]:
        """All rows by length, in as many batches for each process; the last may repeat a row to make up the number."""
        order = np.argsort(self.rows.lengths, kind="stable")
        order = np.pad(order, (0, -len(order) % world_size), mode="edge")[rank::world_size]
        for start in range(0, len(order), self.batch_size):
            chosen = self.rows.__getitems__(order[start : start + self.batch_size].tolist())
            yield self.collate(chosen)
