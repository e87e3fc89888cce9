"""A judge with several criteria: one question each, their weighted mean, and each by its name."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.data import RowsSource
from lit_rlhf.errors import ConfigurationError, ServiceError
from lit_rlhf.feedback import label_pairs, read_labelled_pairs
from lit_rlhf.http import Endpoint
from lit_rlhf.judges import EndpointJudge, PairwiseJudge, Verdict
from lit_rlhf.rewards import JudgeReward
from lit_rlhf.testing import make_tokenizer
from tests.loopback import Answer, Loopback, Request, serving
from tests.reference.completions import make_completions
from tests.tolerances import FP32

CRITERIA = {"short": "It is short.", "kind": "It is kind."}
ONE = "{{ criterion }}|{{ response }}"
PAIR = "{{ criterion }}|{{ first }}|{{ second }}"


def rate(request: Request) -> Answer:
    """Short: 5 less the letters. Kind: counts letters k, and has no verdict on x."""
    criterion, text = request.body["messages"][-1]["content"].split("|")
    kind = "none" if "x" in text else str(1 + text.count("k"))
    said = str(5 - len(text)) if criterion == CRITERIA["short"] else kind
    return Answer({"choices": [{"message": {"content": said}}]})


def compare(request: Request) -> Answer:
    criterion, first, second = request.body["messages"][-1]["content"].split("|")
    worth = (
        len(second) - len(first)
        if criterion == CRITERIA["short"]
        else first.count("k") - second.count("k")
    )
    chance = 1 / (1 + math.exp(-worth))
    top = [
        {"token": "A", "logprob": math.log(chance)},
        {"token": "B", "logprob": math.log(1 - chance)},
    ]
    return Answer({"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]})


def judge(server: Loopback, **options: Any) -> EndpointJudge:
    given: dict[str, Any] = {"criteria": CRITERIA, "weights": {"kind": 3.0}, **options}
    return EndpointJudge(Endpoint(server.url, retries=0), "m", **given)


def test_the_weighted_mean_and_its_parts(tmp_path: Path) -> None:
    with serving(rate) as server:
        one = judge(server, template=ONE, mode="text", failures="null", cache=tmp_path)
        found = one.assess([{"prompt": "p", "response": text} for text in ("k", "kk", "x")])
        assert len(server.requests) == 6
        assert [each and dict(each.criteria) for each in found] == [
            {"short": 4, "kind": 2},
            {"short": 3, "kind": 3},
            {"short": 4},
        ]
        assert [each and each.value for each in found] == [(4 + 6) / 4, 3, 4]
        assert one.judge([{"prompt": "p", "response": "k"}]) == [2.5]
        assert len(server.requests) == 6  # known by question


def test_each_criterion_is_a_part_of_the_reward() -> None:
    completions = make_completions(make_tokenizer(), ["one ", "two "], ["k", "kk", "x", "kkk"])
    with serving(rate) as server:
        options = {"template": ONE, "mode": "text", "failures": "null"}
        scores = JudgeReward(judge(server, **options)).score(completions)
    assert scores.total.tolist() == [2.5, 3.0, 4.0, (2 + 12) / 4]
    assert {name: part.tolist() for name, part in scores.parts.items()} == {
        "short": [4, 3, 4, 2],
        "kind": [2, 3, 4, 4],  # the third has none, and gets that of its prompt's other
    }


def test_pairs_are_compared_by_each() -> None:
    completions = make_completions(make_tokenizer(), ["one "], ["k", "kkk"])
    rows = RowsSource([{"prompt": "p", "chosen": "kkk", "rejected": "k"}])
    with serving(compare) as server:
        pairs = judge(server, template=PAIR)
        scores = JudgeReward(pairs, clip=1e-6).score(completions)
        labelled = label_pairs(read_labelled_pairs(rows)[0], PairwiseJudge(pairs))
    short, kind = (torch.tensor([x, -x]) / 2 for x in (2.0, -2.0))
    torch.testing.assert_close(scores.parts["short"], short, **FP32)
    torch.testing.assert_close(scores.parts["kind"], kind, **FP32)
    assert float(scores.total[1]) > 0  # kind weighs more
    (row,) = (each.row() for each in labelled.judged)
    assert row["chosen"] == "kkk"
    sure = 1 / (1 + math.exp(-2))
    assert row["criteria"] == pytest.approx({"short": 1 - sure, "kind": sure})
    assert row["p_chosen"] == pytest.approx((1 - sure + 3 * sure) / 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "{{ response }}"}, "doesn't read `criterion`"),
        ({"weights": {"long": 1.0}}, "of criteria"),
        ({"weights": {"kind": 0.0}}, "above 0"),
        ({"criteria": {"kind": " "}, "weights": None}, "what is judged"),
    ],
)
def test_rubrics_that_say_nothing_are_refused(options: Mapping[str, Any], message: str) -> None:
    with serving(rate) as server, pytest.raises(ConfigurationError, match=message):
        judge(server, **options)


def test_shipped_questions_without_criteria_are_as_they_were() -> None:
    with serving(rate) as server:
        plain = EndpointJudge(Endpoint(server.url), "m", template="score").template
        asked = plain.messages({"prompt": "p", "response": "r"}, ["1", "2"])[0]["content"]
        by = plain.messages({"prompt": "p", "response": "r"}, ["1", "2"], "It is kind.")[0][
            "content"
        ]
    assert asked.endswith("How good is it? End with one word: 1, 2.")
    assert by.endswith(
        "How good is it, by this criterion alone: It is kind. End with one word: 1, 2."
    )


# -- all criteria in one answer ----------------------------------------------------------------------------------------

TOGETHER: dict[str, Any] = {"together": True, "mode": "text", "failures": "null"}
ALL = "{{ criteria | join('|') }}|{{ response }}"


def rate_at_once(request: Request) -> Answer:
    """As `rate`, in one text that reasons first; nothing at all on z."""
    first, second, text = request.body["messages"][-1]["content"].split("|")
    assert (first, second) == tuple(CRITERIA)
    kind = "unclear" if "x" in text else str(1 + text.count("k"))
    said = f"Short: I begin with 1.\n- **Short**: {5 - len(text)}\n- kind = `{kind}`"
    return Answer({"choices": [{"message": {"content": "?" if "z" in text else said}}]})


def test_one_answer_gives_each_criterion_as_single_questions_do(tmp_path: Path) -> None:
    texts = ("k", "kk", "x", "zz")
    with serving(rate_at_once) as server, serving(rate) as other:
        once = judge(server, template=ALL, cache=tmp_path, **TOGETHER)
        each = judge(other, template=ONE, mode="text", failures="null")
        cases = [{"prompt": "p", "response": text} for text in texts]
        found = once.assess(cases)
        assert found[:3] == each.assess(cases[:3])
        assert found[3] is None
        assert len(server.requests) == 4
        assert (once.tally.asked, once.tally.failed, once.tally.mass) == (2, 2, 2.0)
        assert once.assess(cases) == found
        assert len(server.requests) == 6  # those that lacked something aren't known
        again = judge(server, template=ALL, cache=tmp_path, **TOGETHER, words={"1": 1, "9": 9})
        assert again.assess(cases[:1]) == [None]
        assert len(server.requests) == 7, "other words are another question"


def test_a_reward_of_criteria_asked_together() -> None:
    completions = make_completions(make_tokenizer(), ["one ", "two "], ["k", "kk", "x", "kkk"])
    with serving(rate_at_once) as server:
        scores = JudgeReward(judge(server, template=ALL, **TOGETHER)).score(completions)
        assert len(server.requests) == 4
    assert scores.total.tolist() == [2.5, 3.0, 4.0, (2 + 12) / 4]
    assert {name: part.tolist() for name, part in scores.parts.items()} == {
        "short": [4, 3, 4, 2],
        "kind": [2, 3, 4, 4],
    }


def test_what_one_answer_leaves_out_is_an_error_where_failures_are() -> None:
    with serving(rate_at_once) as server:
        strict = judge(server, template=ALL, **{**TOGETHER, "failures": "raise"})
        with pytest.raises(ServiceError, match=r"no verdict on \['kind'\].*kind = `unclear`"):
            strict.judge([{"prompt": "p", "response": "x"}])
        assert strict.tally.failed == 1


def test_pairs_are_compared_by_all_criteria_at_once() -> None:
    def prefer(request: Request) -> Answer:
        first, second = request.body["messages"][-1]["content"].split("|")
        short = "tie" if len(first) == len(second) else "AB"[len(first) > len(second)]
        kind = "AB"[first.count("k") < second.count("k")]
        said = f'{{"short": "{short}", "kind": "{kind}"}}'
        return Answer({"choices": [{"message": {"content": said}}]})

    pair = "{{ first }}|{{ second }}{{ '' if criteria }}"
    with serving(prefer) as server:
        compared = PairwiseJudge(judge(server, template=pair, **TOGETHER))
        (found,) = compared.compare([("p", "aaa", "kk")])
        assert len(server.requests) == 2
    assert found is not None
    assert found.criteria == {"short": 0.0, "kind": 0.0}
    assert (found.forward, found.backward) == (0.0, 1.0)


@pytest.mark.parametrize("template", ["score", "pairwise"])
def test_the_shipped_question_names_all_criteria(template: str) -> None:
    with serving(rate) as server:
        both = judge(server, template=template, **TOGETHER)
    case = {"prompt": "p", "response": "r", "first": "r", "second": "s"}
    words = list(both.verdict.words)
    asked = both.template.messages(case, words, criteria=CRITERIA)[0]["content"]
    assert "?\n\n- short: It is short.\n- kind: It is kind.\n\n" in asked
    assert asked.endswith(f'one word of {", ".join(words)}, such as "short: {words[0]}".')


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("short: 10\nvery short: 1", {"short": "10", "very short": "1"}),
        ("SHORT: 4/5, Very Short=**2**", {"short": "4", "very short": "2"}),
        ('{"short": 4, "very short": "10"}', {"short": "4", "very short": "10"}),
        ("short: 2, no: short: 4. And not shortish: 1", {"short": "4"}),
        ("short: 4.5\nvery short: 40", {}),
        ("", {}),
    ],
)
def test_words_are_read_behind_names(text: str, found: Mapping[str, str]) -> None:
    verdict = Verdict({str(n): n for n in (1, 2, 4, 10)})
    assert verdict.read_each(text, ["short", "very short"]) == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": ONE}, "doesn't read `criteria`"),
        ({"mode": "logprobs"}, "together must be left out by log-probs"),
        ({"criteria": None, "weights": None}, "together must be false without criteria"),
        ({"pattern": "(1)"}, "with a pattern"),
        ({"criteria": {"kind": "a", "Kind": "b"}}, "differ by case"),
    ],
)
def test_criteria_that_cannot_be_asked_together(options: Mapping[str, Any], message: str) -> None:
    with serving(rate) as server, pytest.raises(ConfigurationError, match=message):
        judge(server, **{"template": ALL, **TOGETHER, **options})
