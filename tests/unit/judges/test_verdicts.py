from typing import Any

import pytest

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.judges import PairwiseJudge, Template, Verdict
from lit_rlhf.judges.endpoint import Endpoint, EndpointJudge


@pytest.mark.parametrize(
    "words", [{}, {"A": 1.0}, {"A": 1.0, "B": None}, {"A": 1.0, " B": 0.0}, {"A": 1.0, "B": "x"}]
)
def test_words_that_make_no_verdict_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"words must be"):
        Verdict(words)


@pytest.mark.parametrize(
    "text",
    ["{{ first }}", "{{ answer }}", "no names", "{{ first }}{{ second }}{{ response }}", "{{ x"],
)
def test_templates_that_ask_nothing_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"template of a judge"):
        Template(text)


@pytest.mark.parametrize(
    "text", ["{{ response.__class__.__mro__ }}", "{{ response / 2 }}", "{{ ''.join(response, 3) }}"]
)
def test_templates_reach_nothing_beside_the_texts(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"fails"):
        Template(text).messages({"prompt": "p", "response": "r"}, [])


def test_pairs_need_a_template_of_two_and_a_worth_within_0_and_1() -> None:
    server = Endpoint("http://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match=r"reads `first` and `second`"):
        PairwiseJudge(EndpointJudge(server, "m", template="score"))
    with pytest.raises(ConfigurationError, match=r"0 \(the second answer is better\)"):
        PairwiseJudge(EndpointJudge(server, "m", words={"A": 1.0, "B": -1.0}))


def test_a_word_that_begins_several_is_none() -> None:
    verdict = Verdict({"1": 1, "10": 10, "tie": 0, "ten": 3})
    assert [verdict.match(t) for t in ("1", "10", " ti", "t", "", "x")] == [
        "1", "10", "tie", None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize("pattern", ["(", "no group", "(two)(groups)"])
def test_patterns_that_find_no_word_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match="one group"):
        Verdict({"1": 1, "2": 2}, pattern)


def test_a_pattern_finds_the_last_word_it_matches() -> None:
    verdict = Verdict({"1": 1, "2": 2}, r"score=(\d)")
    assert [verdict.read(t) for t in ("score=1, no: score=2\nend", "score=3", "2")] == [
        "2",
        None,
        None,
    ]
