"""Rows to a file or to standard output."""

import errno
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rlhf.cli.commands import Written
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.files import refuse_foreign, whole_file, writing

if TYPE_CHECKING:  # commands that need no model import no torch
    from lit_rlhf.data import Source


def print_text(text: str) -> None:
    """Write to standard output, as it stands."""
    sys.stdout.write(text)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal: told how many are done, gone when it ends."""
    from rich.console import Console  # noqa: PLC0415 - of those that take long alone
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.update(task, completed=count)


def refuse_output(
    path: Path,
    option: str,
    written: Written,
    others: Iterable[str | Path] = (),
    overwrite: bool = False,
) -> None:
    """Before any work: refuse a place that can't be written, or that holds what nobody said to replace.

    Args:
        path: The place.
        option: By which it is named.
        written: What the command writes there.
        others: What else the command reads and writes, as far as it is there; that is never replaced.
        overwrite: Whether `--overwrite` is given.

    Raises:
        ConfigurationError: It names no file, or one of the others, or something is there already.
        FileError: The system refuses, or it is a directory of something else.
    """
    named = f"{option} {str(path)!r}"
    files = [path, *([path.with_suffix(".json")] if path.suffix == ".html" else [])]
    with writing(path):
        if not written.marker and (not path.name or (path.exists() and not path.is_file())):
            what = "a pipe or a device" if path.exists() and not path.is_dir() else "a directory"
            raise ConfigurationError(f"{named} names no file, but {what}: name a file.")
        if written.suffixes and path.suffix not in written.suffixes:
            raise ConfigurationError(f"{named} must end in {' or '.join(written.suffixes)}.")
        for other in filter(os.path.exists, others):
            place = Path(other).resolve()
            # A directory with the output's own name may be a word of another option, as in --role reward.
            lost = {*place.parents, *([place] if place.is_file() else [])}
            if any(file.resolve() in lost for file in files):
                raise ConfigurationError(
                    f"{named} would replace {other}, which the command reads or writes itself: choose another place."
                )
        home = next(parent for parent in path.absolute().parents if parent.exists())
        if not (home.is_dir() and os.access(home, os.W_OK | os.X_OK)):
            number = errno.EACCES if home.is_dir() else errno.ENOTDIR
            raise OSError(number, os.strerror(number))
        if written.marker:
            refuse_foreign(path, written.marker, "The export")
        made_again = (
            written.again and path.is_file() and written.again in path.read_text("utf-8", "ignore")
        )
        there = [file for file in files if _holds(file)]
    if there and not overwrite and not made_again:
        way_out = "remove it" if written.again else "give --overwrite to replace it"
        raise ConfigurationError(
            f"{there[0]} is there already. Choose another place by {option}, or {way_out}."
        )


def refuse_input(output: Path | None, source: "Source") -> None:
    """Before any work: refuse an output that is a file of the data, whatever was said of replacing it."""
    from lit_rlhf.data import FileSource  # noqa: PLC0415  (see above)

    if output is not None and isinstance(source, FileSource):
        files = [file.path for file in source.files()]
        refuse_output(output, "--output", Written(), files, overwrite=True)


def _holds(path: Path) -> bool:
    """Whether something would be lost there."""
    return any(path.iterdir()) if path.is_dir() else path.exists() and path.stat().st_size > 0


def writable_rows(source: "Source") -> list[dict[str, Any]]:
    """The rows of a source, all of which `write_rows` can write again.

    Raises:
        DataError: A column can't be written, such as one of bytes.
    """
    rows = [dict(row) for row in source.load()]
    for number, row in enumerate(rows):
        for name, value in row.items():
            try:
                json.dumps(value, default=_text)
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{source.locate(number)}: column {name!r} can't be written as JSONL: {error}. Leave it out of the "
                    "data."
                ) from error
    return rows


def require_columns(
    source: "Source", rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> None:
    """Before any work: refuse rows none of which has a column, by the option that names it.

    Raises:
        ConfigurationError: One is missing.
    """
    there = dict.fromkeys(name for row in rows for name in row)
    for option, name in columns.items():
        if rows and name not in there:
            raise ConfigurationError(
                f"{source} has no column {name!r}, but {', '.join(there)}: name yours by {option} COLUMN."
            )


def set_aside(rows: Sequence[dict[str, Any]], written: Collection[str]) -> list[dict[str, Any]]:
    """Rows whose columns of names that are written anew go on under another one, `NAME_before`; which, is said."""
    taken = dict.fromkeys(name for row in rows for name in row)
    names = {}
    for name in (name for name in taken if name in written):
        other = f"{name}_before"
        while other in taken or other in written:
            other += "_before"
        names[name] = other
    if names:
        told = ", ".join(f"{name} as {other}" for name, other in names.items())
        sys.stderr.write(f"What the rows hold already is kept: {told}.\n")
    return [{names.get(name, name): value for name, value in row.items()} for row in rows]


def write_rows(rows: Iterable[Mapping[str, Any]], output: Path | None) -> None:
    """Write rows as JSONL to a file, or to standard output where there is none; dates and the like as text."""
    lines = (json.dumps(dict(row), ensure_ascii=False, default=_text) + "\n" for row in rows)
    if output is None:
        sys.stdout.writelines(lines)
        return
    with (
        whole_file(output) as temporary,
        # Half a character, which no encoding writes, becomes the escape that JSON has for it.
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.writelines(lines)


def say_written(count: int, output: Path | None) -> None:
    """How many rows went into a file, on standard error."""
    if output is not None:
        sys.stderr.write(f"{count} rows: {output}\n")


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        raise TypeError("it holds bytes")
    return str(value)
