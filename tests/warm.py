"""A Python that has imported everything already: what tests start many commands with, as a user would.

    [warm.python(), "-m", "lit_rlhf", "fit", ...]

Imports take ten seconds of a slow CPU in each process, more than what most tests do there. Here one process pays them,
and every started one is forked from it: with its own arguments, directory, environment, pipes, signals and exit status,
and with its children started the same way (`sys.executable`, torchrun's `PYTHON_EXEC`). Not for tests of the imports
themselves, or of what an interpreter's options do. Processes forked so share one seed of Python's hashes, so sets of
strings have one order in all of them; tests/cli/test_torchrun.py starts its own as a user does.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import NoReturn

IMPORTED = ("lit_rlhf.cli.training", "datasets")

KILL = signal.SIGUSR2.value
"""Sent in place of SIGKILL, which ends whom it is sent to before he can hand it on; with this both have ended by it."""

# Imports ask whether there is a GPU; so asked, a CUDA build of torch isn't told that its forks mustn't use one.
UNTOUCHED = {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}

# Runs in place of Python: hands over arguments, directory, environment and pipes, then signals, until the end.
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
words = [word for word in sys.argv[1:] if word != "-u"]
if not words or (words[0].startswith("-") and words[0] not in ("-m", "-c")):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
signals = {{signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, {kill}}}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until they can be handed over
request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
server.sendall(request)
for number in signals:
    signal.signal(number, lambda number, frame: server.send(bytes([number])))
signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
status = server.recv(8)
code = os.waitstatus_to_exitcode(int.from_bytes(status, "big")) if status else 1
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def python() -> str:
    """What is called in place of `sys.executable`."""
    return str(commands() / "python")


@functools.cache
def commands() -> Path:
    """A directory for `PATH`, with what is called in place of the environment's commands; the first call starts all."""
    place = Path(tempfile.mkdtemp(prefix="warm-"))
    address = str(place / "socket")
    client = place / "python"
    client.write_text(CLIENT.format(python=sys.executable, address=address, kill=KILL))
    for name, module in (("lit-rlhf", "lit_rlhf"), ("torchrun", "torch.distributed.run")):
        (place / name).write_text(f'#!/bin/sh\nexec {client} -m {module} "$@"\n')
    for name in ("python", "lit-rlhf", "torchrun"):
        (place / name).chmod(0o755)
    root = str(Path(__file__).parents[1])
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", address, str(client)],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", **UNTOUCHED},
        stdin=subprocess.PIPE,  # its end is the server's
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None and server.stdout.readline() == b"ready\n"
    atexit.register(shutil.rmtree, place)
    atexit.register(server.kill)
    return place


def _serve(address: str, client: str) -> list[str]:
    """Fork a process for each request, until standard input ends; return in that process, with its words."""
    for name in IMPORTED:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who watch
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if _fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's jobs ignore
            return _start(connection, client)
        connection.close()
    sys.exit()


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, of which there are none yet
        return os.fork()


def _start(connection: socket.socket, client: str) -> list[str]:
    length, pipes, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as lines:
        words, directory, environment = json.loads(lines.read(int.from_bytes(length, "big")))
    child = _fork()
    if child:
        _watch(connection, child, pipes)
    connection.close()
    for number, pipe in enumerate(pipes):
        os.dup2(pipe, number)
        os.close(pipe)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment | {"PYTHON_EXEC": client})
    sys.executable = client
    found: list[str] = words
    return found


def _watch(connection: socket.socket, child: int, pipes: list[int]) -> None:
    """Hand signals to the child and its status back; it ends with who asked for it."""
    for pipe in (0, 1, 2, *pipes):
        os.close(pipe)
    ended = os.pidfd_open(child)
    while ended not in select.select([connection, ended], [], [])[0]:
        signals = connection.recv(64)
        for number in signals.replace(bytes([KILL]), b"\x09") or b"\x09":
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
        if not signals:
            break
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        connection.send(status.to_bytes(8, "big"))
    os._exit(0)


def _run(words: list[str]) -> None:
    """As Python would, started with these words."""
    import lightning.fabric.utilities.rank_zero as ranks

    ranks.rank_zero_only.rank = ranks._get_rank() or 0  # which Lightning reads when it is imported
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, buffering=1, closefd=False)
        for number, mode in enumerate(("r", "w", "w"))
    )
    kind, *rest = words
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    first = {"-m": str(Path.cwd()), "-c": ""}.get(kind, str(Path(kind).parent))
    sys.path[:] = [first, *places, *(place for place in sys.path[1:] if place not in places)]
    if kind == "-m":
        sys.argv = ["-m", *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")


def _ended() -> NoReturn:
    """End as an interpreter does, but for taking down what is in memory: that copies all of it, in seconds."""
    error = sys.exception()
    code = 0 if error is None else 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1 if error.code else 0
        if code and code is not error.code:
            sys.stderr.write(f"{error.code}\n")
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
    threading._shutdown()  # type: ignore[attr-defined]  # joins those that are no daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


if __name__ == "__main__":
    words = _serve(*sys.argv[1:])
    try:
        _run(words)
    except BaseException:  # noqa: BLE001 - whatever ends a program
        _ended()
    _ended()
