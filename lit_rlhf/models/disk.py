"""Writing to disks that may be full: directories that appear whole, and what is said where there is no room."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_rlhf.errors import CheckpointError
from lit_rlhf.files import sync
from lit_rlhf.models.cards import RECORD

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# How libraries written in Rust (safetensors, tokenizers) say what the system told them.
_SYSTEM_ERROR = re.compile(r"^(?:.*: )?(.+?) \(os error (\d+)\)")


@contextmanager
def whole_directory(path: Path, needed: int = 0) -> Iterator[Path]:
    """Yield a directory to write to, and move it to `path` when all is on disk; on an error nothing of it is left.

    An earlier export at `path` is replaced.

    Args:
        path: Where it is to stand.
        needed: Bytes that will be written, about; for the message where there is no room.

    Raises:
        CheckpointError: `path` holds something else, or the disk is full.
    """
    refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        _replace(temporary, path)
        sync(path.parent)
    except Exception as error:
        if (cause := out_of_room(error)) is None:
            raise
        shutil.rmtree(temporary, ignore_errors=True)  # first, so that what is free is free
        before = " What was there before is untouched." if path.exists() else ""
        raise CheckpointError(
            f"The export {path} can't be written: {room(path.parent, needed, cause)}.{before} Make "
            "room, or choose another disk."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_foreign(path: Path) -> None:
    """Refuse to replace what isn't an earlier export.

    Raises:
        CheckpointError: `path` holds files, and no export's record.
    """
    if (
        path.exists()
        and not (path / RECORD).is_file()
        and (not path.is_dir() or any(path.iterdir()))
    ):
        raise CheckpointError(
            f"{path} exists and is no export of lit_rlhf. Choose another path, or delete it."
        )


def out_of_room(error: BaseException) -> str | None:
    """What the system said, where an error or one that it hides says that a disk, quota or limit is full; else None.

    Example:
        >>> out_of_room(OSError(28, "No space left on device"))
        'No space left on device'
        >>> out_of_room(PermissionError(13, "Permission denied")) is None
        True
    """
    return next((said for number, said in _system_errors(error) if number in _NO_ROOM), None)


def cause_in_system(error: BaseException) -> str:
    """What the system said behind an error of a library; the error's own words where it said nothing."""
    return next((said for _, said in _system_errors(error)), str(error))


def _system_errors(error: BaseException) -> Iterator[tuple[int, str]]:
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and at.errno is not None:
            yield at.errno, at.strerror or str(at)
        elif (said := _SYSTEM_ERROR.match(str(at))) is not None:
            yield int(said[2]), said[1]
        at = at.__cause__ or at.__context__


def room(directory: Path, needed: float, cause: str) -> str:
    """Why there was no room, how much there is and how much is needed, as part of a message."""
    free = shutil.disk_usage(directory).free / 2**20
    return f"{cause}. {free:.0f} MiB are free there; this one needs about {needed / 2**20:.0f}"


def _replace(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    old = path.parent / f".{path.name}.old-{os.getpid()}"
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)
