"""Servers that answer alike: one that fails is left out and asked again later, and what it was asked goes elsewhere."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from lit_rlhf.errors import LitRLHFError, ServiceError

Server = TypeVar("Server")
Result = TypeVar("Result")

_MOST_DOUBLINGS = 4

_log = logging.getLogger(__name__)


class Replicas(Generic[Server]):
    """Which of several servers are asked; safe to use from several threads.

    Args:
        servers: At least one. `str` of each names it in messages.
        pause: Seconds after which one that failed is due to be asked again. Each time it then fails once more they
            double, to 16 times as many: one that hangs costs its timeout whenever it is asked. What `ask` gets from it
            ends that, and nothing less: a server may tell that it is well, and hang at what it is there for.

    Example:
        >>> replicas = Replicas(["http://one", "http://two"])
        >>> replicas.ask(3, lambda url: f"{url} says yes")
        'http://two says yes'
    """

    def __init__(self, servers: Sequence[Server], pause: float = 30.0) -> None:
        self.servers = list(servers)
        self.pause = pause
        self._away: dict[int, tuple[float, LitRLHFError]] = {}
        self._failed = dict.fromkeys(range(len(self.servers)), 0)
        self._lock = threading.Lock()

    def live(self) -> list[Server]:
        """Those that haven't failed since they were last taken back, in their order."""
        with self._lock:
            return [each for i, each in enumerate(self.servers) if i not in self._away]

    def due(self) -> list[Server]:
        """Those that are away, and have been for as long as their pause."""
        with self._lock:
            return [self.servers[i] for i in self._away if self._is_due(i)]

    def leave_out(self, server: Server, error: LitRLHFError) -> None:
        """Ask a server no more for the time of its pause; said once, as a warning."""
        with self._lock:
            index = self.servers.index(server)
            known = index in self._away
            since = time.monotonic()
            if known and not self._is_due(index):
                # It was asked several things at once, and failed with all.
                since, _ = self._away[index]
            else:
                self._failed[index] += 1
            self._away[index] = (since, error)
            left = len(self.servers) - len(self._away)
            pause = self._pause(index)
        if not known and len(self.servers) > 1:
            said = "%s is left out, and asked again in %g seconds; %d of %d servers go on. %s"
            _log.warning(said, server, pause, left, len(self.servers), error)

    def take_back(self, server: Server) -> None:
        """Ask it again."""
        with self._lock:
            known = self._away.pop(self.servers.index(server), None)
        if known is not None and len(self.servers) > 1:
            _log.warning("%s is back.", server)

    def ask(self, key: int, function: Callable[[Server], Result]) -> Result:
        """Ask the key's server; where it fails, leave it out and ask the next.

        Args:
            key: The same key comes to the same server, as long as the same ones are live.
            function: Asks a server.

        Raises:
            ServiceError: No server is left; it says what each of them said last.
        """
        while live := self.live():
            server = live[key % len(live)]
            try:
                found = function(server)
            except LitRLHFError as error:  # a 404 too: this one's, and another may do better
                self.leave_out(server, error)
            else:
                self._failed[self.servers.index(server)] = 0
                return found
        raise self.nobody()

    def nobody(self) -> LitRLHFError:
        """What to raise when no server is live: of one server its own error, of several what each said."""
        with self._lock:
            errors = [error for _, error in self._away.values()]
        if len(errors) == 1:
            return errors[0]
        said = " ".join(dict.fromkeys(map(str, errors)))
        return ServiceError(f"None of the {len(self.servers)} servers answers. {said}")

    def _pause(self, index: int) -> float:
        return self.pause * 2.0 ** min(max(self._failed[index] - 1, 0), _MOST_DOUBLINGS)

    def _is_due(self, index: int) -> bool:
        since, _ = self._away[index]
        return time.monotonic() >= since + self._pause(index)
