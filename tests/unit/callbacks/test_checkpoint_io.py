import os
import resource
import signal
import socket
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.callbacks import AtomicCheckpointIO, checkpoint_io
from lit_rlhf.callbacks.checkpoint_io import checkpoint_problem
from lit_rlhf.errors import CheckpointError
from lit_rlhf.files import remove_stale_files

STATE = {"weights": torch.arange(5000.0), "step": 3, "names": ["a", "b"]}


class NotPlain:
    pass


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "iteration-00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    return path


def test_what_is_saved_is_loaded(saved: Path) -> None:
    loaded = AtomicCheckpointIO().load_checkpoint(saved)
    assert torch.equal(loaded["weights"], STATE["weights"])
    assert loaded["step"] == 3
    assert checkpoint_problem(saved) is None
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_file_is_synced_before_it_is_moved_and_the_directory_after(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        calls.append(
            "sync " + ("directory" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        )
        fsync(descriptor)

    def spy_replace(self: Path, target: Path) -> Path:
        calls.append("move")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    AtomicCheckpointIO().save_checkpoint(STATE, saved)
    assert calls == ["sync file", "move", "sync directory"]


def test_a_full_disk_leaves_the_last_good_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, real_open = saved.read_bytes(), Path.open

    def full(self: Path, *args: Any, **kwargs: Any) -> Any:
        return real_open(Path("/dev/full") if self.name.endswith(".tmp") else self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(
        CheckpointError, match=rf"{saved} can't be written: No space left.* \d+ MiB are free there"
    ):
        AtomicCheckpointIO().save_checkpoint({"other": torch.zeros(9)}, saved)
    assert saved.read_bytes() == good
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def in_child(action: Callable[[], None]) -> int:
    """Run an action in a forked process; its exit code, negative for a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # Python 3.12 warns of threads, of which the child needs none
        child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_file_size_limit_removes_the_temporary_file(saved: Path) -> None:
    def save_too_much() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            AtomicCheckpointIO().save_checkpoint({"big": torch.zeros(100_000)}, saved)
        except CheckpointError as error:
            os._exit(7 if "File too large" in str(error) else 8)

    assert in_child(save_too_much) == 7
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]
    assert checkpoint_problem(saved) is None


def test_a_kill_while_writing_leaves_the_last_good_file_and_the_next_save_cleans_up(
    saved: Path,
) -> None:
    def die_before_syncing() -> None:
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        AtomicCheckpointIO().save_checkpoint({"other": torch.zeros(9)}, saved)

    good = saved.read_bytes()
    assert in_child(die_before_syncing) == -signal.SIGKILL
    assert saved.read_bytes() == good
    assert len(list(saved.parent.iterdir())) == 2
    AtomicCheckpointIO().save_checkpoint(STATE, saved.with_name("another.ckpt"))
    assert sorted(file.name for file in saved.parent.iterdir()) == ["another.ckpt", saved.name]


def test_only_files_of_dead_processes_are_stale(tmp_path: Path) -> None:
    host = socket.gethostname().replace(".", "_")
    child = subprocess.Popen(["true"])
    child.wait()
    names = {
        "alive": f".a.ckpt.{host}-{os.getpid()}.tmp",
        "dead": f".b.ckpt.{host}-{child.pid}.tmp",
        "elsewhere": ".c.ckpt.another-host-12.tmp",
        "old elsewhere": ".d.ckpt.another-host-12.tmp",
        "not ours": ".e.tmp",
    }
    for name in names.values():
        (tmp_path / name).touch()
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / names["old elsewhere"], (long_ago, long_ago))
    remove_stale_files(tmp_path)
    left = {what for what, name in names.items() if (tmp_path / name).exists()}
    assert left == {"alive", "elsewhere", "not ours"}


def test_what_is_moved_to_its_place_meanwhile_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = [tmp_path / ".a.ckpt.another-host-12.tmp"]
    monkeypatch.setattr(Path, "glob", lambda *_: iter(gone))
    remove_stale_files(tmp_path)


@pytest.mark.parametrize("state", [{"x": NotPlain()}, {"x": lambda: 0}], ids=["object", "function"])
def test_what_would_not_load_again_is_refused_at_saving(saved: Path, state: dict[str, Any]) -> None:
    good = saved.read_bytes()
    with pytest.raises(
        CheckpointError, match=r"would not load again with weights_only=True: .*(NotPlain|lambda)"
    ):
        AtomicCheckpointIO().save_checkpoint(state, saved)
    assert saved.read_bytes() == good


@pytest.mark.parametrize("kept", [0, 4, 200, 0.5, 0.99])
def test_truncated_files_are_found_and_not_loaded(saved: Path, kept: float) -> None:
    size = saved.stat().st_size
    os.truncate(saved, kept if kept > 1 or kept == 0 else int(size * kept))
    assert checkpoint_problem(saved) is not None
    with pytest.raises(CheckpointError, match=rf"{saved} can't be read"):
        AtomicCheckpointIO().load_checkpoint(saved)


def test_one_wrong_bit_among_the_weights_is_found(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    saved.write_bytes(content)
    torch.load(saved, weights_only=True)  # torch doesn't look at checksums
    assert "checksum" in (checkpoint_problem(saved) or "")


def test_foreign_and_missing_files_are_named(tmp_path: Path) -> None:
    foreign = tmp_path / "notes.ckpt"
    foreign.write_text("these are no weights")
    with pytest.raises(CheckpointError, match=r"notes\.ckpt can't be read"):
        AtomicCheckpointIO().load_checkpoint(foreign)
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*missing\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "missing.ckpt")


def test_objects_are_loaded_only_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "objects.ckpt"
    torch.save({"x": NotPlain()}, path)
    with pytest.raises(CheckpointError, match=r"holds an object of type .*NotPlain"):
        AtomicCheckpointIO().load_checkpoint(path)
    assert isinstance(AtomicCheckpointIO().load_checkpoint(path, weights_only=False)["x"], NotPlain)


def test_remote_paths_are_left_to_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        checkpoint_io.TorchCheckpointIO,
        "save_checkpoint",
        lambda self, state, path, options=None: written.append(str(path)),
    )
    AtomicCheckpointIO().save_checkpoint(STATE, "s3://bucket/a.ckpt")
    assert written == ["s3://bucket/a.ckpt"]
