"""Many rows with few calls of the tokenizer: the same tokens, counts and messages as row by row."""

import random
from collections.abc import Mapping
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import (
    Format,
    Record,
    RowsSource,
    encoding as encoding_module,
    preparation as preparation_module,
)
from lit_rlhf.data.conversion import Shape
from lit_rlhf.data.encoding import Encoder
from lit_rlhf.data.preparation import Preparation
from lit_rlhf.data.records import InvalidRowError
from lit_rlhf.testing import make_tokenizer
from lit_rlhf.testing.tokenizers import make_word_tokenizer
from tests.reference.tokenization import tokenize

PIECES = (
    "the",
    " the",
    "th",
    "e",
    "in",
    " in",
    "er",
    "\n",
    "naïve",
    "🙂",
    " ",
    "<eos>",
    "<bos>",
    "q:",
    "t",
    "",
)


class AsTheyAre(Format):
    """Rows hold their records, or what goes wrong with them."""

    def __call__(self, row: Mapping[str, Any]) -> list[Record]:
        if "error" in row:
            raise row["error"]
        return list(row["records"])


def text(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randrange(1, 7))) or "a"


def random_record(rng: random.Random) -> Record:
    kind = rng.choice(("plain", "plain", "chat", "steps", "prompt"))
    if kind == "chat":
        turns = [{"role": "user", "content": text(rng)}]
        return Record(
            turns, tuple([{"role": "assistant", "content": text(rng) + "."}] for _ in range(2))
        )
    if kind == "steps":
        return Record(text(rng), tuple(text(rng) + "." for _ in range(3)), steps=True)
    completions = () if kind == "prompt" else (text(rng) + "a", text(rng) + "b", text(rng) + "c")
    return Record(rng.choice(("", text(rng))), completions)


def prepare(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], **options: Any
) -> Preparation:
    encoder = Encoder(tokenizer, **options)
    return Preparation(RowsSource(rows), AsTheyAre(), encoder, Shape((0, None), fields=("margin",)))


@pytest.mark.parametrize(
    "tokenizer",
    [
        make_tokenizer(),
        make_tokenizer(bos=True),
        make_tokenizer(merges=("t h", "th e", "q :", ": t", "e Ċ")),
    ],
    ids=["plain", "bos", "merges over seams"],
)
def test_tokens_are_those_of_row_by_row(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation_module, "_ROWS_AT_ONCE", 7)
    monkeypatch.setattr(encoding_module, "_CHARACTERS_AT_ONCE", 40)
    rng = random.Random(0)
    rows = [{"records": [random_record(rng) for _ in range(rng.randrange(3))]} for _ in range(150)]
    expected = [
        (n, *tokenize(tokenizer, record)) for n, row in enumerate(rows) for record in row["records"]
    ]
    found = [(r["row"], r["prompt_ids"], r["completion_ids"]) for r in prepare(tokenizer, rows)]
    assert found == expected


def test_rows_left_out_are_those_of_row_by_row() -> None:
    """Each row alone in a Preparation of its own says what is wrong with it; all together say the same."""
    good = Record("q:", (" a", " b"))
    bad: list[dict[str, Any]] = [
        {"records": [Record("q:", (" ", " b"))]},
        {"records": [Record("q:", (" a", " a"))]},
        {"records": [Record("q:", (" a" * 50, " b"))]},
        {"records": [Record("\ud800", (" a", " b"))]},
        {"records": [Record("q:", (" a", " b"), template={"tools": []})]},
        {"error": InvalidRowError("odd row", "it is odd")},
    ]
    rows: list[dict[str, Any]] = [{"records": [good]}]
    for row in bad * 3:
        rows += [row, {"records": [good]}]
    together = prepare(make_tokenizer(), rows, max_completion_length=20)
    kept = [row["row"] for row in together]
    assert kept == [0, *range(2, len(rows), 2)]
    reasons = {}
    for row in bad:
        alone = prepare(make_tokenizer(), [{"records": [good]}, row], max_completion_length=20)
        list(alone)
        reasons |= {name: reason.first for name, reason in alone.report.reasons.items()}
    assert len(reasons) == len(bad)
    assert together.report.counts == dict.fromkeys(reasons, 3)
    firsts = {
        name: reason.first.partition(": ")[2] for name, reason in together.report.reasons.items()
    }
    assert firsts == {name: first.partition(": ")[2] for name, first in reasons.items()}
    assert [reason.first.partition(": ")[0] for reason in together.report.reasons.values()] == [
        f"rows in memory, row {2 + 2 * number}" for number in range(len(bad))
    ]


@pytest.mark.parametrize("direct", [True, False])
def test_many_texts_are_few_calls(direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    name = "ask_backend" if direct else "_call_tokenizer"
    answer = getattr(encoding_module, name)

    def counted(core: Any, texts: list[str], special: bool) -> list[list[int]]:
        calls.append(len(texts))
        return answer(core, texts, special)

    # ":a" is no word, so completions are tokenized again
    tokenizer = make_word_tokenizer([*"abcdefgh", "q", ":"])
    rows = [{"records": [Record("q :", (letter, "h h"))]} for letter in "abcdefg" * 10]
    monkeypatch.setattr(encoding_module, name, counted)
    preparation = prepare(tokenizer, rows)
    if not direct:
        preparation.encoder._ids._backend = None
    calls.clear()
    assert len(list(preparation)) == 70
    # Prompt and what follows, each text once; the same behind a line break.
    assert calls == [1 + 7 + 1, 1 + 7 + 1]


def test_a_tokenizer_with_ways_of_its_own_is_called_itself() -> None:
    class Shouting(PreTrainedTokenizerFast):
        def __call__(self, text: Any, **options: Any) -> Any:
            return super().__call__(
                [line.upper() for line in text] if isinstance(text, list) else text, **options
            )

    core = make_tokenizer()
    shouting = Shouting(
        tokenizer_object=core.backend_tokenizer, eos_token="<eos>", bos_token="<bos>"
    )
    assert shouting.decode(Encoder(shouting)(Record("q", (" a",))).completions[0]) == " A<eos>"


def test_collection_is_on_again_afterwards() -> None:
    import gc

    assert gc.isenabled()
    with pytest.raises(InvalidRowError):
        Encoder(make_tokenizer())(Record("q", ("",)))
    assert gc.isenabled()
