import email.utils
import pickle
import socket
import time

import pytest
from loopback import Answer, Loopback, in_turn, serving

from lit_rlhf.errors import ConfigurationError, ServiceError
from lit_rlhf.http import Endpoint, HTTPClient

RIGHT = Answer({"said": "yes"})


def client(server: Loopback, **options) -> HTTPClient:
    return HTTPClient(Endpoint(server.url, **{"backoff": 0.01, "retries": 2, **options}))


def test_json_goes_out_and_comes_back_whole() -> None:
    text = "ü \ud800 </script> \x00\u2028"
    with serving(lambda request: Answer({"echo": request.body})) as server:
        asked = client(server)
        assert asked.post("/a/b", {"text": text}) == {"echo": {"text": text}}
        assert asked.get("a") == {"echo": None}
        asked.close()
        assert asked.get("a") == {"echo": None}
    assert [request.path for request in server.requests] == ["/a/b", "/a", "/a"]


@pytest.mark.parametrize(
    "fault",
    [
        Answer("no", status=429),
        Answer("no", status=500),
        Answer("no", status=503),
        Answer(b"<html>not json"),
        Answer(b"\xff\xfe"),
        Answer({"said": "half"}, cut=True),
        Answer({"said": "late"}, delay=0.4),
        Answer({"said": "drop by drop"}, trickle=0.05),
    ],
    ids=["429", "500", "503", "html", "bytes", "cut", "late", "trickle"],
)
def test_what_fails_for_the_moment_is_asked_again_and_in_the_end_named(fault: Answer) -> None:
    limit = {"timeout": 0.2} if fault.delay or fault.trickle else {}
    with serving(in_turn(fault, RIGHT)) as server:
        assert client(server, **limit).post("/x", {}) == {"said": "yes"}
    assert len(server.requests) == 2
    with serving(lambda _: fault) as server:
        with pytest.raises(ServiceError, match=rf"{server.url}/x .* after 3 tries"):
            client(server, **limit).post("/x", {})
        assert len(server.requests) == 3
        with pytest.raises(ServiceError, match=rf"{server.url}/x"):
            client(server, **limit).post("/x", {}, retries=0)
        assert len(server.requests) == 4


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_server_says_how_long_to_wait(form: str) -> None:
    after = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    full = Answer("slow down", status=429, headers={"Retry-After": after})
    with serving(in_turn(full, RIGHT)) as server:
        begin = time.monotonic()
        assert client(server).post("/x", {}) == {"said": "yes"}
        assert 0.8 < time.monotonic() - begin < 5


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_is_not_sent_again(status: int) -> None:
    with (
        serving(lambda _: Answer({"error": "too long"}, status=status)) as server,
        pytest.raises(ServiceError, match=f"HTTP {status}.*too long"),
    ):
        client(server).post("/x", {})
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 401, 403, 404])
def test_what_every_request_would_meet_is_a_matter_of_the_configuration(status: int) -> None:
    moved = {"Location": "http://elsewhere/x"} if status == 301 else {}
    with (
        serving(lambda _: Answer("no", status=status, headers=moved)) as server,
        pytest.raises(ConfigurationError, match=f"HTTP {status}") as caught,
    ):
        client(server).post("/x", {})
    assert len(server.requests) == 1
    assert ("http://elsewhere/x" in str(caught.value)) == (status == 301)


def test_a_key_comes_from_the_environment_and_stays_there(monkeypatch) -> None:
    with serving(lambda _: RIGHT) as server:
        asked = client(server, api_key_env="SOME_KEY", headers={"x-team": "a"})
        monkeypatch.delenv("SOME_KEY", raising=False)
        with pytest.raises(ConfigurationError, match=r"SOME_KEY.*isn't set"):
            asked.post("/x", {})
        monkeypatch.setenv("SOME_KEY", "tök\nen")
        with pytest.raises(ConfigurationError, match=r"SOME_KEY.*characters"):
            asked.post("/x", {})
        monkeypatch.setenv("SOME_KEY", " token ")
        asked.post("/x", {})
    assert server.requests[0].headers["authorization"] == "Bearer token"
    assert server.requests[0].headers["x-team"] == "a"
    assert b"token" not in pickle.dumps(asked)
    assert "token" not in repr(asked.endpoint)


def test_requests_go_out_so_many_at_a_time_and_come_back_in_order() -> None:
    with serving(lambda request: Answer(request.body, delay=0.2)) as server:
        asked = client(server, concurrency=4)
        found = list(asked.map(lambda number: asked.post("/x", number), range(12)))
    assert found == list(range(12))
    assert server.most == 4


def test_an_error_stops_those_that_wait_for_their_next_try() -> None:
    def answer(request) -> Answer:
        wrong = request.body == 0
        return Answer("no", status=401, delay=0.2) if wrong else Answer("no", status=500)

    with serving(answer) as server:
        asked = client(server, concurrency=4, backoff=30.0, retries=9)
        begin = time.monotonic()
        with pytest.raises(ConfigurationError, match="HTTP 401"):
            list(asked.map(lambda number: asked.post("/x", number), range(100)))
        assert time.monotonic() - begin < 5
        assert len(server.requests) < 40


def test_nobody_there(monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # not for this machine
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ServiceError, match=r"can't be reached .* after 2 tries"):
        HTTPClient(Endpoint(url, retries=1, backoff=0.01)).get("/x")
    with serving(lambda _: RIGHT) as server:
        assert client(server).get("/x") == {"said": "yes"}


def test_a_client_can_be_pickled() -> None:
    with serving(lambda _: RIGHT) as server:
        asked = client(server)
        asked.get("/x")
        assert pickle.loads(pickle.dumps(asked)).get("/x") == {"said": "yes"}


@pytest.mark.parametrize(
    "options",
    [
        {"url": "example.com"},
        {"url": "ftp://example.com"},
        {"url": "http://"},
        {"concurrency": 0},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"retries": -1},
        {"backoff": -1},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Endpoint(**{"url": "http://127.0.0.1", **options})
