import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lit_rlhf.data import (
    AsChat,
    ChosenOf,
    Conversation,
    Demonstration,
    ExplicitPrompt,
    Format,
    ImplicitPrompt,
    InvalidRowError,
    PairsFromRanking,
    PlainText,
    PreferenceLabel,
    PromptOnly,
    PromptsOf,
    Ranked,
    Record,
    Unpaired,
    UnpairedFromPairs,
)

USER = {"role": "user", "content": "hi"}
GOOD = {"role": "assistant", "content": "hello"}
BAD = {"role": "assistant", "content": "go"}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
TURN = "\n\nHuman: hi\n\nAssistant:"

CASES: list[tuple[Format, dict[str, Any], list[Record]]] = [
    (
        ExplicitPrompt(),
        {"prompt": "p", "chosen": "a", "rejected": "b", "other": 1},
        [Record("p", ("a", "b"))],
    ),
    (
        ExplicitPrompt("q", "yes", "no", margin="by", p_chosen="share"),
        {"q": "p", "yes": "a", "no": "b", "by": "0.5", "share": 1, "margin": "unread"},
        [Record("p", ("a", "b"), {"margin": 0.5, "p_chosen": 1.0})],
    ),
    (
        ExplicitPrompt(),
        {
            "prompt": [USER],
            "chosen": [GOOD],
            "rejected": "go",
        },  # plain text after messages is the assistant's
        [Record([USER], ([GOOD], [BAD]))],
    ),
    (ExplicitPrompt(), {**PAIR, "margin": None}, [Record("p", ("a", "b"))]),
    (
        ImplicitPrompt(),
        {
            "chosen": TURN + " a\n\nHuman: and?\n\nAssistant: b",
            "rejected": TURN + " a\n\nHuman: and?\n\nAssistant: c",
        },
        [Record(TURN + " a\n\nHuman: and?\n\nAssistant:", (" b", " c"))],
    ),
    (
        ImplicitPrompt(marker="A:", chosen="x", rejected="y"),
        {"x": "Q: hi A: hello", "y": "Q: hi A: go", "p_chosen": 0.75},
        [Record("Q: hi A:", (" hello", " go"), {"p_chosen": 0.75})],
    ),
    (
        ImplicitPrompt(),
        {"chosen": [USER, GOOD], "rejected": [USER, BAD], "prompt": "unread"},
        [Record([USER], ([GOOD], [BAD]))],
    ),
    (Demonstration(), {"prompt": "p", "completion": "a"}, [Record("p", ("a",))]),
    (Conversation(), {"messages": [USER, BAD, USER, GOOD]}, [Record([USER, BAD, USER], ([GOOD],))]),
    (PlainText(), {"text": "a b"}, [Record("", ("a b",))]),
    (PromptOnly(), {"prompt": "p", "x": 1, "y": None}, [Record("p", columns={"x": 1, "y": None})]),
    (PromptOnly(columns=["x"]), {"prompt": "p", "x": 1, "y": 2}, [Record("p", columns={"x": 1})]),
    (
        Ranked(),
        {"prompt": "p", "completions": ["a", "b", "c"], "scores": [1, "2", 0.5]},
        [Record("p", ("a", "b", "c"), {"score": (1.0, 2.0, 0.5)})],
    ),
    (
        Ranked(ranks="ranks"),
        {"prompt": "p", "completions": ["a", "b"], "ranks": [2, 1]},
        [Record("p", ("a", "b"), {"score": (-2.0, -1.0)})],
    ),
    (
        Unpaired(),
        {"prompt": "p", "completion": "a", "label": "True"},
        [Record("p", ("a",), {"label": True})],
    ),
    (
        Unpaired(),
        {"prompt": "p", "completion": "a", "label": 0},
        [Record("p", ("a",), {"label": False})],
    ),
    (
        Unpaired(score="stars"),
        {"prompt": "p", "completion": "a", "stars": "4"},
        [Record("p", ("a",), {"score": 4.0})],
    ),
    (
        AsChat(ExplicitPrompt(), system="be kind"),
        {"prompt": "hi", "chosen": "hello", "rejected": "go"},
        [Record([{"role": "system", "content": "be kind"}, USER], ([GOOD], [BAD]))],
    ),
    (
        PromptsOf(ImplicitPrompt(), columns=[]),
        {"chosen": TURN + " a", "rejected": TURN + " b"},
        [Record(TURN)],
    ),
    (
        ChosenOf(ExplicitPrompt()),
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        [Record("p", ("a",))],
    ),
    (
        UnpairedFromPairs(ExplicitPrompt()),
        {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2},
        [Record("p", ("a",), {"label": True}), Record("p", ("b",), {"label": False})],
    ),
    (
        PairsFromRanking(Ranked()),
        {"prompt": "p", "completions": ["a", "b", "c"], "scores": [1, 3, 1]},
        [Record("p", ("b", "a"), {"margin": 2.0}), Record("p", ("b", "c"), {"margin": 2.0})],
    ),
    (
        PairsFromRanking(Ranked(), with_margin=False),
        {"prompt": "p", "completions": ["a", "b"], "scores": [1, 3]},
        [Record("p", ("b", "a"))],
    ),
]


@pytest.mark.parametrize(
    ("format_", "row", "records"),
    CASES,
    ids=[f"{n}-{type(c[0]).__name__}" for n, c in enumerate(CASES)],
)
def test_rows_become_records(format_: Format, row: dict[str, Any], records: list[Record]) -> None:
    assert format_(row) == records


BAD_CASES: list[tuple[Format, dict[str, Any], str]] = [
    (
        ExplicitPrompt(),
        {"prompt": "p", "chosen": "a"},
        r"no column 'rejected': the row's columns are \['chosen', 'prompt'\]",
    ),
    (ExplicitPrompt(), {**PAIR, "chosen": None}, "no value in column 'chosen'"),
    (
        ExplicitPrompt(),
        {**PAIR, "chosen": 3},
        "column 'chosen' is neither text nor messages: got int 3",
    ),
    (ExplicitPrompt(), {**PAIR, "prompt": ""}, "empty prompt: column 'prompt' is empty"),
    (ExplicitPrompt(), {**PAIR, "prompt": []}, "column 'prompt' is neither text nor messages"),
    (
        ExplicitPrompt(),
        {**PAIR, "prompt": [{"from": "user"}]},
        "a message of column 'prompt' has no content",
    ),
    (
        ExplicitPrompt(),
        {**PAIR, "chosen": [USER, GOOD]},
        "prompt and completion differ in kind: .*'chosen' holds messages",
    ),
    (
        ExplicitPrompt(),
        {**PAIR, "prompt": [USER], "chosen": [USER, GOOD]},
        "completion repeats the prompt: .*ImplicitPrompt",
    ),
    (
        ExplicitPrompt(),
        {**PAIR, "p_chosen": 1.1},
        "column 'p_chosen' is out of range: got 1.1, it must be between 0 and 1",
    ),
    (ExplicitPrompt(), {**PAIR, "p_chosen": -0.1}, "column 'p_chosen' is out of range"),
    (ExplicitPrompt(), {**PAIR, "margin": "much"}, "column 'margin' is no number: got 'much'"),
    (
        ExplicitPrompt(),
        {**PAIR, "margin": float("nan")},
        "column 'margin' is out of range: got nan, it must be finite",
    ),
    (
        ImplicitPrompt(),
        {"chosen": "a", "rejected": "b"},
        r"column 'chosen' has no answer: the marker '\\n\\nAssistant:'",
    ),
    (
        ImplicitPrompt(),
        {"chosen": TURN + " a", "rejected": TURN.replace("hi", "ho") + " a"},
        "chosen and rejected have different prompts: 'rejected' doesn't begin with the prompt of 'chosen'",
    ),
    (
        ImplicitPrompt(),  # the transcripts part before the last turn of the chosen one
        {
            "chosen": TURN + " a\n\nHuman: and?\n\nAssistant: b",
            "rejected": TURN + " x\n\nHuman: and?\n\nAssistant: c",
        },
        "chosen and rejected have different prompts",
    ),
    (
        ImplicitPrompt(),
        {"chosen": [USER, GOOD], "rejected": "go"},
        "chosen and rejected have different prompts",
    ),
    (
        ImplicitPrompt(),
        {"chosen": [USER], "rejected": [USER]},
        r"column 'chosen' doesn't end in an answer: .*\['user'\]",
    ),
    (
        Conversation(),
        {"messages": [USER, GOOD, USER]},
        "column 'messages' is no conversation with an answer",
    ),
    (PlainText(), {"text": [USER]}, "column 'text' is no plain text"),
    (PromptOnly(columns=["x"]), {"prompt": "p"}, "no column 'x'"),
    (
        Ranked(),
        {"prompt": "p", "completions": ["a"], "scores": [1]},
        "column 'completions' is no list of two or more",
    ),
    (
        Ranked(),
        {"prompt": "p", "completions": "ab", "scores": [1, 2]},
        "is no list of two or more: got str",
    ),
    (
        Ranked(),
        {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2, 3]},
        "differ in length: 2 completions, 3 values",
    ),
    (
        Ranked(),
        {"prompt": "p", "completions": ["a", "b"], "scores": [1, None]},
        "column 'scores' is no number",
    ),
    (
        Unpaired(),
        {"prompt": "p", "completion": "a", "label": 2},
        "column 'label' is out of range: got 2, it must be true or",
    ),
    (
        Unpaired(score="s", low=0, high=4),
        {"prompt": "p", "completion": "a", "s": 5},
        "'s' is out of range: .*between 0 and 4",
    ),
    (
        PairsFromRanking(Ranked()),
        {"prompt": "p", "completions": ["a", "b"], "scores": [1, 1]},
        "ranking of ties",
    ),
]


@pytest.mark.parametrize(
    ("format_", "row", "message"), BAD_CASES, ids=[str(n) for n in range(len(BAD_CASES))]
)
def test_rows_that_cannot_be_used_say_why(
    format_: Format, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRowError, match=message):
        format_(row)


def test_equal_prompts_have_equal_keys_and_texts_without_prompt_their_own() -> None:
    assert (
        Record([USER]).prompt_key()
        == Record(({"content": "hi", "role": "user"},), ([GOOD],)).prompt_key()
    )
    assert Record([USER]).prompt_key() != Record([USER, GOOD]).prompt_key()
    assert Record("", ("a",)).prompt_key() != Record("", ("b",)).prompt_key()


def str_of_array(turns: list[Any]) -> str:
    """As pandas writes the lists of Parquet files."""
    return str(np.array(turns, dtype=object))


@pytest.mark.parametrize(
    "write", [json.dumps, repr, str_of_array, lambda turns: f" {json.dumps(turns)}\n"]
)
@pytest.mark.parametrize(("role", "content"), [("role", "content"), ("from", "value")])
def test_messages_that_are_written_as_text_are_messages(
    write: Callable[[Any], str], role: str, content: str
) -> None:
    """As CSV files hold them, by JSON or by pandas."""
    turns = {
        "prompt": [{role: "system", content: "Be brief."}, {role: "user", content: 'It\'s "é"?'}],
        "chosen": [{role: "assistant", content: "Yes.\n[1]"}],
        "rejected": [{role: "assistant", content: "No."}],
    }
    written = {name: write(each) for name, each in turns.items()}
    assert ExplicitPrompt()(written) == ExplicitPrompt()(turns)
    for text in (
        '[{"role": "user", "content": ',
        "[{'role': x}]",
        '[{"role": 1}, 2]',
        '[{"a": 1}]',
        '[{"role": "admin", "name": "Bob"}]',
        '[{"role": "user", "name": "Bob"}]',
        '[{"role": "admin", "content": "all of it"}]',
        '[{"from": "Berlin", "to": "Paris"}]',
        '[{"role": ["user"], "content": "x"}]',
    ):
        assert Demonstration()({"prompt": text, "completion": text})[0].prompt == text


@pytest.mark.parametrize(
    ("first", "second"), [("a", "b"), ("model_a", "model_b"), ("left", "right"), (1, 0), ("True", "False")]
)  # fmt: skip
def test_the_better_one_of_two_may_be_named(first: Any, second: Any) -> None:
    reader = PreferenceLabel("q", "left", "right", "winner")
    row = {"q": "?", "left": "x", "right": "y"}
    assert reader({**row, "winner": first})[0].completions == ("x", "y")
    assert reader({**row, "winner": second})[0].completions == ("y", "x")
    for said, reason in (("tie (bothbad)", "a tie"), ("Both", "a tie"), ("c", "out of range")):
        with pytest.raises(InvalidRowError, match=reason):
            reader({**row, "winner": said})


def test_names_of_columns_come_before_other_words_for_the_first_and_the_second() -> None:
    turned = PreferenceLabel("q", "b", "a", "winner")
    for said in ("a", "b"):
        record = turned({"q": "?", "a": "text of a", "b": "text of b", "winner": said})[0]
        assert record.completions[0] == f"text of {said}"
