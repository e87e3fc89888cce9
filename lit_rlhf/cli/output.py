"""Rows to a file or to standard output."""

import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.files import whole_file, write_text

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


def write_new(texts: Mapping[Path, str], option: str = "--output") -> None:
    """Write files that people change afterwards.

    Args:
        texts: What each of them is to hold.
        option: By which they are named.

    Raises:
        ConfigurationError: One is there with other words; none is written then.
    """
    for file, text in texts.items():
        refuse_directory(file, option=option)
        if file.exists() and (not file.is_file() or file.read_bytes() != text.encode()):
            raise ConfigurationError(
                f"{file} is there already, and may hold changes of yours. Name another file by {option}, or remove it."
            )
    for file, text in texts.items():
        write_text(file, text)


def refuse_directory(output: Path | None, *suffixes: str, option: str = "--output") -> None:
    """Before any work: refuse an output that is no file's path, or has none of the suffixes where there are any."""
    if output is not None and (not output.name or output.is_dir()):
        raise ConfigurationError(
            f"{option} {str(output)!r} names no file, but a directory: name a file in it."
        )
    if output is not None and suffixes and output.suffix not in suffixes:
        raise ConfigurationError(f"--output {str(output)!r} must end in {' or '.join(suffixes)}.")


def refuse_input(output: Path | None, source: "Source") -> None:
    """Before any work: refuse an output that is a file of the data."""
    from lit_rlhf.data import FileSource  # noqa: PLC0415  (see above)

    files = source.files() if isinstance(source, FileSource) and output is not None else []
    if any(output is not None and output.resolve() == file.path.resolve() for file in files):
        raise ConfigurationError(
            f"--output {str(output)!r} is the file that is read, which would be lost: name another file."
        )


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
    refuse_directory(output)
    with (
        whole_file(output) as temporary,
        # Half a character, which no encoding writes, becomes the escape that JSON has for it.
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.writelines(lines)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        raise TypeError("it holds bytes")
    return str(value)
