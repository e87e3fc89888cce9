"""A real HTTP server on loopback that answers as it is told: late, wrong, not at all."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Request:
    """What came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    """What goes out.

    Attributes:
        body: JSON, or bytes as they are.
        status: Of HTTP.
        headers: Further ones.
        delay: Seconds before anything is sent.
        trickle: Seconds between single bytes of the body.
        cut: Close the connection before the body is complete.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    trickle: float = 0.0
    cut: bool = False


class Server(ThreadingHTTPServer):
    """Says nothing of a client that was killed, which here is meant.

    Its traceback would be more than noise: up to Python 3.11.7 printing one parses code, and where the main thread
    parses some at that moment, its own parse fails (CPython gh-106905).
    """

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Loopback:
    """A server; `requests` holds what it was asked, `most` how many requests it had at one time."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self.requests: list[Request] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and body go out in two writes; else the second waits 40 ms for the client's acknowledgement.
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                body = json.loads(raw) if raw else None
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, body)
                with outer._lock:
                    outer.requests.append(request)
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                try:
                    self._send(answer(request))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with outer._lock:
                        outer._now -= 1

            do_GET = do_POST  # noqa: N815

            def _send(self, found: Answer) -> None:
                time.sleep(found.delay)
                given = found.body
                data = given if isinstance(given, bytes) else json.dumps(given).encode()
                self.send_response(found.status)
                for name, value in found.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                if found.cut:
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                elif found.trickle:
                    for byte in data:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(found.trickle)
                else:
                    self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Keep quiet."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def serving(answer: Callable[[Request], Answer]) -> Iterator[Loopback]:
    """Run a server on a free port while within."""
    loopback = Loopback(answer)
    thread = threading.Thread(target=loopback.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield loopback
    finally:
        loopback.server.shutdown()
        loopback.server.server_close()
        thread.join()


def in_turn(*answers: Answer) -> Callable[[Request], Answer]:
    """One answer after the other, the last of them for ever."""
    left = list(answers)
    lock = threading.Lock()

    def answer(_: Request) -> Answer:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer
