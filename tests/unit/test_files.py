"""Files and directories are whole or not there, have the umask's mode, and say by name why they can't be written."""

import errno
import os
import shutil
import signal
import stat
from pathlib import Path

import pytest

from lit_rlhf.errors import CheckpointError, FileError
from lit_rlhf.files import free_name, whole_directory, whole_file, write_text, writing
from tests.killed import kill_before


def content(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o027, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_modes_are_those_of_the_umask(umask: int, tmp_path: Path) -> None:
    with whole_directory(tmp_path / "out", "marker") as directory:
        (directory / "weights").touch(mode=0o600)  # as safetensors makes its files
        (directory / "part").mkdir(mode=0o700)
        (directory / "part" / "readme").touch()
    with whole_file(tmp_path / "a.bin") as temporary:
        temporary.unlink()
        temporary.touch(mode=0o600)
    assert mode(tmp_path / "out") == mode(tmp_path / "out" / "part") == 0o777 & ~umask
    for name in ("out/weights", "out/part/readme", "a.bin"):
        assert mode(tmp_path / name) == 0o666 & ~umask, name


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text(f"half {1 / 0}")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert content(tmp_path) == ["a.txt"]


def test_a_kill_leaves_one_of_two_directories(tmp_path: Path) -> None:
    """Before each change of a file, while a directory replaces another."""
    path = tmp_path / "out"
    for number in range(100):
        shutil.rmtree(path, ignore_errors=True)
        with whole_directory(path, "marker") as directory:
            (directory / "marker").write_text("old")
        child = os.fork()
        if child == 0:
            kill_before(rf"\S+ {path.parent}", number + 1)
            with whole_directory(path, "marker") as directory:
                (directory / "marker").write_text("new")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert (path / "marker").read_text() in ("old", "new"), number
        if status == 0:
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert number > 3


def test_full_disks_and_refusals_are_said_with_the_name(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with (
        pytest.raises(FileError, match=r"The file \S+full can't be written: No space.* MiB are fr"),
        writing(tmp_path / "full"),
    ):
        (tmp_path / "full").write_text("x")
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"The table \S+file/a.txt can't be written: File exi"):
        write_text(tmp_path / "file" / "a.txt", "x", "The table")
    with (
        pytest.raises(CheckpointError, match=r"The export \S+out can't be written: Read-only file"),
        whole_directory(tmp_path / "out", "marker", "The export", kind=CheckpointError),
    ):
        raise OSError(errno.EROFS, "Read-only file system", "elsewhere")
    assert content(tmp_path) == ["file", "full"]


def test_errors_of_other_kinds_pass() -> None:
    with pytest.raises(FileNotFoundError), writing(Path("a")):
        Path("/nowhere/at/all").read_text()
    with pytest.raises(CheckpointError, match="own words"), writing(Path("a")):
        raise CheckpointError("own words") from OSError(errno.ENOSPC, "No space left on device")


def test_free_names(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        names.append(free_name(tmp_path / "a.txt"))
        names[-1].touch()
    assert [name.name for name in names] == ["a.txt", "a-1.txt", "a-2.txt"]
