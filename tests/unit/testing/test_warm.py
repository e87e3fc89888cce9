"""The Python that has imported everything is a Python: what other tests start commands with."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests import warm


def run(*words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [warm.python(), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_arguments_directory_environment_and_pipes_are_its_own(tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv, os.getcwd(), ascii(os.environ['A']), input(), 'torch' in sys.modules)"
    environment = {**os.environ, "A": "\udcff b"}
    done = run("-c", code, "c", "d e", cwd=tmp_path, env=environment, input="line\n")
    assert not done.stderr
    assert done.stdout == f"['-c', 'c', 'd e'] {tmp_path} '\\udcff b' line True\n"


def test_modules_and_scripts_run_as_python_runs_them(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys\nprint(__name__, sys.argv[1:], sys.path[0])\n")
    words = ["__main__", "['a']", f"{tmp_path}\n"]
    assert run("-m", "mine", "a", cwd=tmp_path).stdout == " ".join(words)
    assert run(str(tmp_path / "mine.py"), "a").stdout == " ".join(words)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('why')", 1),
        ("1 / 0", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os; os._exit(5)", 5),
        ("import atexit, os; atexit.register(os._exit, 6)", 6),
        ("import threading; threading.Timer(0.1, print, ['late']).start()", 0),
    ],
)
def test_it_ends_as_python_does(code: str, status: int) -> None:
    done = run("-c", code)
    assert done.returncode == status
    assert ("ZeroDivisionError" in done.stderr) == ("1 / 0" in code)
    assert ("why" in done.stderr) == ("why" in code)
    assert ("late" in done.stdout) == ("late" in code)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, warm.KILL])
def test_signals_reach_it(sent: int) -> None:
    """It has ended when that is told, but for SIGKILL."""
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen(
        [warm.python(), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        place = Path("/proc", process.stdout.readline().strip())
        process.send_signal(sent)
        assert process.wait(30) == -(signal.SIGKILL if sent == warm.KILL else sent)
    if sent == signal.SIGKILL:
        end = time.monotonic() + 30
        while place.exists() and time.monotonic() < end:
            time.sleep(0.01)
    assert not place.exists()


def test_what_it_starts_is_started_the_same_way() -> None:
    inner = "import sys; print('torch' in sys.modules)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    assert run("-c", code).stdout == "True\n"
