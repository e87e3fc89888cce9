"""Many rows with one call of the tokenizer: the same tokens, counts and messages as row by row."""

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import Format, Record, RowsSource
from lit_rlhf.data import asking as asking_module
from lit_rlhf.data import preparation as preparation_module
from lit_rlhf.data.asking import Asking, ids_of, together
from lit_rlhf.data.encoding import Encoder
from lit_rlhf.data.preparation import Preparation, Shape
from lit_rlhf.data.records import InvalidRowError
from lit_rlhf.errors import ConfigurationError
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
    return Preparation(RowsSource(rows), AsTheyAre(), encoder, Shape((0, None)), "drop", "drop")


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
    monkeypatch.setattr(asking_module, "_CHARACTERS_AT_ONCE", 40)
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
        {"records": [good, Record("q:", (" ", " b"))]},
        {"records": [Record("q:", (" a", " a"))]},
        {"records": [Record("q:", (" a" * 50, " b"))]},
        {
            "records": [
                good,
                Record("q:", (" a", " b"), fields={"margin": 1.0}),
                Record("q:", (" ", " b")),
            ]
        },
        {
            "records": [
                Record(
                    [{"role": "assistant", "content": "a"}],
                    ([{"role": "assistant", "content": "b"}],),
                )
            ]
        },
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


def test_what_is_wrong_first_is_said_first() -> None:
    """Errors that end the run come in the order of the rows, and rows before them were given."""
    broken = Record("\ud800", (" a", " b"))  # half a character, which the tokenizer refuses
    rows: list[dict[str, Any]] = [{"records": [Record("q:", (" a", " b"))]}, {"records": [broken]}]
    rows.append({"error": ConfigurationError("too late")})
    given = iter(prepare(make_tokenizer(), rows))
    assert next(given)["row"] == 0
    with pytest.raises(TypeError) as raised:
        next(given)
    with pytest.raises(TypeError) as alone:
        make_tokenizer()(["\ud800", "\ud800 a", "\ud800 b"])
    assert str(raised.value) == str(alone.value)
    assert raised.value.__notes__ == [  # type: ignore[attr-defined]
        "This was rows in memory, row 2. A row that can't be used: InvalidRowError."
    ]


class Failing(RowsSource):
    """Gives its rows, always in the same dictionary, and breaks."""

    def load(self) -> Iterable[Mapping[str, Any]]:
        row: dict[str, Any] = {}
        for values in self.rows:
            row.clear()
            row.update(values)
            yield row
        raise OSError("the disk is gone")


def test_rows_before_a_failure_of_the_source_are_given() -> None:
    rows = [{"records": [Record("q:", (f" {letter}", " b"))]} for letter in "acd"]
    preparation = prepare(make_tokenizer(), rows)
    preparation.source = Failing(rows)
    given: Iterator[dict[str, Any]] = iter(preparation)
    tokenizer = make_tokenizer()
    firsts = [tokenizer.decode(next(given)["completion_ids"][0]) for _ in rows]
    assert firsts == [" a<eos>", " c<eos>", " d<eos>"]
    with pytest.raises(OSError, match="the disk is gone"):
        next(given)


def test_many_texts_are_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    answer = asking_module.text_ids

    def counted(tokenizer: Any, texts: list[str], *, special: bool) -> list[list[int]]:
        calls.append(len(texts))
        return answer(tokenizer, texts, special=special)

    monkeypatch.setattr(asking_module, "text_ids", counted)
    tokenizer = make_word_tokenizer(
        [*"abcdefgh", "q", ":"]
    )  # ":a" is no word, so completions are tokenized again
    rows = [{"records": [Record("q :", (letter, "h h"))]} for letter in "abcdefg" * 10]
    assert len(list(prepare(tokenizer, rows))) == 70
    assert calls == [
        1 + 7 + 1,
        1 + 7 + 1,
    ]  # prompt and what follows, each text once; the same behind a line break


def test_a_generator_that_raises_ends_all() -> None:
    def work() -> Asking[int]:
        ids = yield from ids_of(["a"], special=False)
        if ids:
            raise ValueError("no more")
        return 0

    with pytest.raises(ValueError, match="no more"):
        together(make_tokenizer(), [work(), work()])
