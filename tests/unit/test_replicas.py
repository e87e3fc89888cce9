"""Servers that fail are asked again after a pause that grows."""

import pytest

from lit_rlhf import replicas as module
from lit_rlhf.errors import ServiceError
from lit_rlhf.replicas import Replicas


class Clock:
    """Seconds that a test moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def hangs(server: str) -> str:
    raise ServiceError(f"{server} hangs")


def pause(servers: Replicas[str], clock: Clock) -> int:
    """Seconds until the one that is away is due."""
    start = clock.now
    while not servers.due():
        clock.now += 1
    return int(clock.now - start)


def test_one_that_hangs_is_asked_ever_more_seldom_until_it_answers(clock: Clock) -> None:
    servers = Replicas(["one"], 30.0)
    pauses = []
    for _ in range(7):
        with pytest.raises(ServiceError, match="one hangs"):
            servers.ask(0, hangs)
        pauses.append(pause(servers, clock))
        servers.take_back("one")  # as it says that it is well
    assert pauses == [30, 60, 120, 240, 480, 480, 480]
    assert servers.ask(0, str.upper) == "ONE"
    servers.leave_out("one", ServiceError("gone"))
    assert pause(servers, clock) == 30


def test_looks_that_fail_double_the_pause_and_failures_at_once_count_as_one(clock: Clock) -> None:
    servers = Replicas(["one", "two"], 30.0)
    for _ in range(8):  # requests that were in flight together
        servers.leave_out("one", ServiceError("gone"))
        clock.now += 1
    assert pause(servers, clock) == 22
    servers.leave_out("one", ServiceError("still gone"))
    assert servers.due() == []
    assert pause(servers, clock) == 60
    assert str(servers.nobody()) == "still gone"
    assert servers.ask(0, str.upper) == "TWO"
    servers.leave_out("one", ServiceError("still gone"))
    assert pause(servers, clock) == 120, "another's answer says nothing of it"
