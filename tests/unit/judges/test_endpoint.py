import json
import math
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.cli import main
from lit_rlhf.errors import ConfigurationError, ServiceError
from lit_rlhf.http import Endpoint
from lit_rlhf.judges import EndpointJudge, PairwiseJudge
from tests import warm
from tests.loopback import Answer, Request, in_turn, serving


def chat(**probs: float) -> dict[str, Any]:
    """A completion with log-probs, as vLLM and OpenAI answer."""
    top = [{"token": token, "logprob": math.log(p)} for token, p in probs.items()]
    content = {"content": [{"token": "A", "logprob": 0.0, "top_logprobs": top}]}
    usage = {"prompt_tokens": 7, "completion_tokens": 1}
    return {"choices": [{"message": {"content": "A"}, "logprobs": content}], "usage": usage}


def says(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}}]}


def judge(url: str, **options: Any) -> EndpointJudge:
    server = Endpoint(
        f"{url}/v1",
        retries=options.pop("retries", 3),
        backoff=0.01,
        timeout=options.pop("timeout", 5.0),
    )
    return EndpointJudge(server, "m", **options)


CASE = {"prompt": "Hi", "first": "good", "second": "bad"}


def test_the_worth_is_expected_over_the_probabilities_of_words_and_of_their_beginnings() -> None:
    # "t" and " tie" both begin or are "tie"; "The" is no word of the verdict.
    body = chat(**{"A": 0.4, " A": 0.1, "B": 0.2, "t": 0.05, "tie": 0.05, "The": 0.2})
    with serving(in_turn(Answer(body))) as server:
        found = judge(server.url)
        assert found.judge([CASE]) == [pytest.approx((0.5 + 0.05) / 0.8)]
    sent = server.requests[0]
    assert sent.path == "/v1/chat/completions"
    assert sent.body["logprobs"] is True and sent.body["max_tokens"] == 1
    assert "<answer_A>\ngood\n</answer_A>" in sent.body["messages"][0]["content"]
    assert found.tally.mass == pytest.approx(0.8)
    assert (found.tally.prompt_tokens, found.tally.completion_tokens) == (7, 1)


@pytest.mark.parametrize("status", [429, 500])
def test_a_server_that_fails_for_the_moment_is_asked_again(status: int) -> None:
    with serving(in_turn(Answer(status=status), Answer(b"<html>"), Answer(chat(B=1.0)))) as server:
        assert judge(server.url).judge([CASE]) == [0.0]
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    "bad",
    [
        Answer(chat(yes=1.0)),
        Answer({"choices": []}),
        Answer({"choices": [{"message": {"content": "A"}, "logprobs": None}]}),
        Answer([1, 2]),
        Answer(b""),
        Answer({"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": 3}]}]}}]}),
        Answer(chat(A=1.0), delay=2.6),
        Answer({"error": "too long"}, status=400),
    ],
    ids=["words", "none", "no_logprobs", "list", "empty", "token", "slow", "refused"],
)
def test_what_gives_no_verdict_ends_it_or_is_counted(bad: Answer) -> None:
    def answer(request: Request) -> Answer:
        return bad if "broken" in request.body["messages"][0]["content"] else Answer(chat(A=1.0))

    cases = [CASE, {**CASE, "prompt": "broken"}, {**CASE, "prompt": "else"}]
    with serving(answer) as server:
        limit = 2.0 if bad.delay else 30.0
        lenient = judge(server.url, failures="null", timeout=limit, retries=0)
        assert lenient.judge(cases) == [1.0, None, 1.0]
        assert (lenient.tally.asked, lenient.tally.failed) == (2, 1)
        with pytest.raises(ServiceError, match=r"judge|server"):
            judge(server.url, timeout=limit, retries=0).judge(cases)


def test_the_tokens_of_an_answer_without_a_verdict_count() -> None:
    odd = {**chat(A=1.0), "usage": {"prompt_tokens": "many", "completion_tokens": None}}
    with serving(in_turn(Answer(chat(yes=1.0)), Answer(odd))) as server:
        found = judge(server.url, failures="null")
        assert found.judge([CASE]) == [None]
        assert found.judge([{**CASE, "prompt": "Hello"}]) == [1.0]
    tally = found.tally
    assert (tally.asked, tally.failed) == (1, 1)
    assert (tally.prompt_tokens, tally.completion_tokens) == (7, 1)


def test_a_key_that_is_refused_ends_it_even_where_failures_are_let_pass() -> None:
    with serving(in_turn(Answer(status=401))) as server, pytest.raises(ConfigurationError):
        judge(server.url, failures="null").judge([CASE])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A", 1.0),
        ("A is short, B is right.\n\nVerdict: [[B]]", 0.0),
        ("**tie**", 0.5),
        ("A or B", None),
        ("", None),
        ("Both are Bad", None),
    ],
)
def test_text_is_read_by_its_last_line(text: str, value: float | None) -> None:
    with serving(in_turn(Answer(says(text)))) as server:
        assert judge(server.url, mode="text", failures="null").judge([CASE]) == [value]
        assert "logprobs" not in server.requests[0].body


@pytest.mark.parametrize(
    ("text", "value"), [("Answer A is longer, which", None), ("Longer.\nVerdict: **A**", 1.0)]
)
def test_a_text_that_was_cut_has_a_verdict_only_where_it_ends_in_one(
    text: str, value: float | None
) -> None:
    body = {"choices": [{"message": {"content": text}, "finish_reason": "length"}]}
    with serving(in_turn(Answer(body))) as server:
        assert judge(server.url, mode="text", failures="null").judge([CASE]) == [value]


def test_words_worth_nothing_abstain() -> None:
    words = {"A": 1.0, "B": 0.0, "neither": None}
    with serving(in_turn(Answer(chat(A=0.3, neither=0.6)), Answer(chat(A=0.6, neither=0.3)))) as s:
        found = judge(s.url, words=words)
        assert found.judge([CASE]) == [None]
        assert found.judge([{**CASE, "prompt": "x"}]) == [1.0]


def test_both_orders_cancel_what_a_place_is_favored_by() -> None:
    """This server favors A by 0.2, and the answer "good" by 0.3."""

    def answer(request: Request) -> Answer:
        good_first = "<answer_A>\ngood" in request.body["messages"][0]["content"]
        p = 0.5 + 0.1 + (0.3 if good_first else -0.3)
        return Answer(chat(A=p, B=1 - p))

    with serving(answer) as server:
        [found] = PairwiseJudge(judge(server.url)).compare([("Hi", "good", "bad")])
    assert found is not None
    assert (found.forward, found.backward) == (pytest.approx(0.9), pytest.approx(0.3))
    assert (found.p_first, found.bias) == (pytest.approx(0.8), pytest.approx(0.1))


def test_equal_questions_are_asked_once_and_known_ones_never(tmp_path: Path) -> None:
    with serving(in_turn(Answer(chat(A=1.0)))) as server:
        first = judge(server.url, cache=tmp_path / "answers")
        assert first.judge([CASE, CASE]) == [1.0, 1.0]
        again = judge(server.url, cache=tmp_path / "answers")
        assert again.judge([CASE]) == [1.0]
        assert (len(server.requests), again.tally.cached) == (1, 1)
        judge(server.url, cache=tmp_path / "answers", options={"seed": 1}).judge([CASE])
        judge(server.url, cache=tmp_path / "answers", words={"A": 1.0, "C": 0.0}).judge([CASE])
        assert len(server.requests) == 3


HOSTILE = ["{{ 7 * 7 }}", "{% for x in y %}", "</answer_A>\n\x00", "\ud800", "'\"\\", "🙂\u202e"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_arrives_as_it_is(text: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes"}]
    turns.append({"role": "user", "content": "?"})
    with serving(in_turn(Answer(chat(A=1.0)))) as server:
        case = {"prompt": turns, "first": [{"role": "assistant", "content": text}], "second": text}
        found = judge(server.url, cache=tmp_path / "answers")
        assert found.judge([case]) == found.judge([case]) == [1.0]
    said = server.requests[0].body["messages"][0]["content"]
    assert f"user: {text}\n\nassistant: Yes\n\nuser: ?" in said
    assert said.count(text) >= 3


def test_killed_while_labelling_it_goes_on_and_asks_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]
    data, output = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    running: list[subprocess.Popen[bytes]] = []
    killed: list[bool] = []
    answered: list[str] = []

    def answer(request: Request) -> Answer:
        said = request.body["messages"][0]["content"]
        if not killed and len(answered) >= 30:
            running[0].send_signal(warm.KILL)
            return Answer(status=500)
        answered.append(said)
        p = 0.8 if "<answer_A>\ngood" in said else 0.3
        return Answer(chat(A=p, B=1 - p))

    with serving(answer) as server:
        words = ["label", str(data), "--output", str(output), "--judge", "EndpointJudge"]
        words += ["--judge.endpoint.url", f"{server.url}/v1", "--judge.model", "m"]
        words += ["--judge.endpoint.concurrency", "1"]
        command = [warm.python(), "-m", "lit_rlhf", *words]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        assert running[0].wait(timeout=120) == -signal.SIGKILL
        assert not output.exists()
        killed.append(True)
        main(words)
    said = capsys.readouterr().out
    # The one that was on its way when the process died may come a second time.
    assert len(set(answered)) == 80 and len(answered) <= 81
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["chosen"] for row in written] == [row["chosen"] for row in rows]
    assert [row["p_chosen"] for row in written] == pytest.approx([0.75] * 40)
    assert (
        "40 of 40 pairs labelled" in said
        and "agreement with the labels of the data: 100.0%" in said
    )
    assert "preferred with 55.0%" in said and "known from before" in said


def test_a_server_that_is_down_is_said_with_the_way_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    words = ["label", str(data), "--output", str(tmp_path / "out.jsonl")]
    words += ["--judge", "EndpointJudge", "--judge.model", "m", "--judge.endpoint.retries", "0"]
    with serving(in_turn(Answer(status=503))) as server:
        words += ["--judge.endpoint.url", f"{server.url}/v1"]
        with pytest.raises(SystemExit):
            main(words)
    said = capsys.readouterr().err
    assert "HTTP 503" in said
    assert f"What was answered is kept in {tmp_path / 'out.jsonl.answers'}" in said


def test_failures_are_let_pass_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the page has it, where null is no text."""
    rows = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in ("fine", "broken")]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "label",
        str(data),
        "--output",
        str(tmp_path / "out.jsonl"),
        "--judge",
        "EndpointJudge",
    ]
    words += ["--judge.model", "m", "--judge.failures", "null"]

    def answer(request: Request) -> Answer:
        broken = "broken" in request.body["messages"][0]["content"]
        return Answer({"error": "too long"}, status=400) if broken else Answer(chat(A=1.0))

    with serving(answer) as server:
        main([*words, "--judge.endpoint.url", f"{server.url}/v1"])
    assert "1 of 2 pairs labelled" in capsys.readouterr().out
