"""`lit-rlhf annotate` as a process of its own."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests import warm


class Server:
    """The running command: its address, and a way to kill it as a power cut would."""

    def __init__(self, *options: str) -> None:
        command = [warm.python(), "-m", "lit_rlhf", "annotate", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
        assert self.process.stdout is not None
        self.said = ""
        while not (found := re.search(r"at (http://[^/]+)/(\?\S+)?", self.said)):
            line = self.process.stdout.readline()
            assert line, f"the server ended: {self.said}"
            self.said += line
        self.url, self.query = found[1], found[2] or ""
        self.port = self.url.rpartition(":")[2]

    def end(self, signal_number: int) -> int:
        assert self.process.stdout is not None
        self.process.send_signal(signal_number)
        code = self.process.wait(30)
        self.process.stdout.close()
        return code


@contextmanager
def running(*options: str) -> Iterator[Server]:
    server = Server(*options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end(warm.KILL)
