"""Files and directories that are whole or not there, and what is said where they can't be written (layer L0).

Whatever is written here lies beside its place until all of it is on disk, and then moves over in one step: a kill, a
power cut or a full disk leaves what was there before. Modes are those that the umask gives, whoever wrote the bytes.
"""

import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from lit_rlhf.errors import FileError, LitRLHFError, did_you_mean

_TEMPORARY = ".tmp"
_HOST = socket.gethostname().replace(".", "_")
_DAY = 24 * 3600.0
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EIO,
}  # fmt: skip
_MOST_NAMES = 2000
"""Of a directory that are looked through for one that was meant: more would take seconds."""
REFUSALS = _NO_ROOM | _REFUSED
"""Numbers of errors by which the system says that a path can't be written."""

# How libraries written in Rust (safetensors, tokenizers) say what the system told them.
_SYSTEM_ERROR = re.compile(r"^(?:.*: )?(.+?) \(os error (\d+)\)")


@contextmanager
def whole_file(
    path: Path,
    what: str = "The file",
    needed: int = 0,
    way_out: str = "",
    kind: type[LitRLHFError] = FileError,
) -> Iterator[Path]:
    """Yield a file to write to, and move it to `path` when all is on disk; on an error nothing of it is left.

    Args:
        path: Where it is to stand; its directory is made, an earlier file is replaced.
        what: What it is, for messages.
        needed: Bytes that will be written, about; for the message where there is no room.
        way_out: What else to do, for messages; default: another directory.
        kind: The error to raise.

    Raises:
        FileError: (or `kind`) The system refuses: no room, no permission, something else in the way.
    """
    with writing(path, what, needed, way_out, kind):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_files(path.parent)
        temporary = _beside(path)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode & 0o777
            yield temporary
            temporary.chmod(mode)
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


@contextmanager
def whole_directory(
    path: Path,
    marker: str,
    what: str = "The directory",
    needed: int = 0,
    kind: type[LitRLHFError] = FileError,
) -> Iterator[Path]:
    """Yield a directory to write to, and move it to `path` when all is on disk; on an error nothing of it is left.

    Args:
        path: Where it is to stand; an earlier one there is replaced.
        marker: The file by which an earlier one is known; anything else is never replaced.
        what: What it is, for messages.
        needed: Bytes that will be written, about; for the message where there is no room.
        kind: The error to raise.

    Raises:
        FileError: (or `kind`) `path` holds something else, or the system refuses.
    """
    refuse_foreign(path, marker, what, kind)
    with writing(path, what, needed, kind=kind):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_files(path.parent)
        temporary = _beside(path)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            mode = temporary.stat().st_mode & 0o777
            yield temporary
            for entry in temporary.rglob("*"):
                entry.chmod(mode if entry.is_dir() else mode & 0o666)
                sync(entry)
            _replace(temporary, path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str, what: str = "The file") -> None:
    """Write a text in UTF-8, whole or not at all.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "runs" / "a.txt"
        >>> write_text(path, "é")
        >>> path.read_text(encoding="utf-8")
        'é'
    """
    with whole_file(path, what, len(text)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines that this library wrote.

    Raises:
        ValueError: A line is no JSON.
    """
    # A line ends at \n alone: texts may hold what str.splitlines breaks at too, such as U+2028.
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


@contextmanager
def writing(
    path: Path,
    what: str = "The file",
    needed: int = 0,
    way_out: str = "",
    kind: type[LitRLHFError] = FileError,
) -> Iterator[None]:
    """Say of a file what the system refused while it was written: its name, the reason, the way out.

    Args:
        path: What is written; the message says so, whatever name the system's own error has.
        what: What it is, as the first words of a sentence.
        needed: Bytes, about.
        way_out: What else to do.
        kind: The error to raise.

    Raises:
        FileError: (or `kind`) An `OSError` of a full disk, a missing permission or something in the way.
    """
    before = " What was there before is untouched." if path.is_file() or path.is_dir() else ""
    try:
        yield
    except Exception as error:
        if isinstance(error, LitRLHFError) or (found := _system_refusal(error)) is None:
            raise
        number, cause = found
        elsewhere = way_out or "choose another place"
        if number in _NO_ROOM:
            needs = f"; this one needs about {needed / 2**20:.0f}" if needed else ""
            nearest = next(parent for parent in path.absolute().parents if parent.is_dir())
            free = shutil.disk_usage(nearest).free / 2**20
            room = f"{free:.0f} MiB are free there{needs}"
            said = f"{cause}. {room}.{before} Make room, or {elsewhere}."
        else:
            said = f"{cause}.{before} Mend that, or {elsewhere}."
        raise kind(f"{what} {path} can't be written: {said}") from error


def refuse_foreign(
    path: Path, marker: str, what: str = "The directory", kind: type[LitRLHFError] = FileError
) -> None:
    """Refuse to replace what isn't an earlier one of its kind.

    Raises:
        FileError: (or `kind`) `path` holds files, and no `marker`.
    """
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not empty and not (path / marker).is_file():
        raise kind(
            f"{what} {path} can't be written: that exists and is no earlier one, for it holds no {marker}. "
            "Choose another path, or delete it."
        )


def remove_stale_files(directory: Path) -> None:
    """Remove temporary files and directories that processes which are no more left in a directory."""
    for entry in directory.glob(f".*{_TEMPORARY}"):
        host, _, pid = entry.name.removesuffix(_TEMPORARY).rpartition(".")[2].rpartition("-")
        if not pid.isdigit():
            continue
        dead = host == _HOST and not _is_alive(int(pid))
        with suppress(FileNotFoundError):  # its process has moved it to its place meanwhile
            if dead or time.time() - entry.lstat().st_mtime > _DAY:
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink()


def free_name(path: Path) -> Path:
    """The path itself, or with the first free number: `a-1.txt`.

    Example:
        >>> free_name(Path("/nowhere/a.txt"))
        PosixPath('/nowhere/a.txt')
    """
    free, count = path, 1
    while free.exists():
        free, count = path.with_name(f"{path.stem}-{count}{path.suffix}"), count + 1
    return free


def sync(path: Path) -> None:
    """Bring a file or, after a rename, a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DirectoryLock:
    """Keeps a second process out of a directory; a process that is dead holds nothing.

    The lock is the system's, on a hidden file beside it that says who holds it, and is not inherited by children.
    Within one process it can be taken again.

    Args:
        directory: Made if it is missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory.with_name(f".{directory.name}.lock")
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take it.

        Raises:
            FileError: Another process holds it, or the directory can't be written.
        """
        with writing(self.directory, "The directory"):
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return  # a file system without locks
            raise FileError(
                f"Another run is writing to {self.directory} ({holder}). Wait for it, stop it, or give this run a "
                "directory of its own (run_dir, or dirpath of the callbacks)."
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Give it back and remove the file; nothing if it isn't held."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}{_TEMPORARY}")


def _replace(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    if _exchange(new, path):
        return  # the caller removes what is `new` by name
    old = path.with_name(f".{path.name}.old.{_HOST}-{os.getpid()}{_TEMPORARY}")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where the system or the file system can't.

    Else there is a moment between two renames at which a kill leaves neither.
    """
    try:
        exchange = ctypes.CDLL(None).renameat2
    except AttributeError:  # of Linux alone
        return False
    return bool(exchange(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def _system_refusal(error: BaseException) -> tuple[int, str] | None:
    """Number and words of the system behind an error, where it says that a path can't be written."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and at.errno is not None:
            found = at.errno, at.strerror or str(at)
        elif (said := _SYSTEM_ERROR.match(str(at))) is not None:
            found = int(said[2]), said[1]
        else:
            found = 0, ""
        if found[0] in REFUSALS:
            return found
        at = at.__cause__ or at.__context__
    return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def unfinished_file(output: Path) -> Path:
    """Where a command that writes a file keeps what it has found, until the file is there."""
    return output.with_name(f".{output.name}.unfinished")


def is_saved_by_datasets(path: Path) -> bool:
    """Whether a directory was written by `save_to_disk` of the `datasets` library."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def near_path(path: str | Path) -> str:
    """` Did you mean X?` where something beside a path that isn't there has nearly its name; else nothing."""
    place = Path(path).expanduser()
    try:
        found = [] if place.exists() else [*islice(place.parent.iterdir(), _MOST_NAMES)]
    except OSError:
        return ""
    names = [each.name for each in found]
    close = get_close_matches(place.name, names, n=1, cutoff=0.75)
    close = close or [name for name in names if name.partition(".")[0] == place.name]
    return did_you_mean(str(Path(path).parent / name) for name in close[:1])
