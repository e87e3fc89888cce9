"""Every kind of file, random and damaged: our error with the file's name, or rows used or counted."""

import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from lit_rlhf.data import (
    AsChat,
    ChosenOf,
    Conversation,
    Demonstration,
    ExplicitPrompt,
    FileSource,
    Format,
    ImplicitPrompt,
    PairsFromRanking,
    PlainText,
    PromptOnly,
    PromptsOf,
    Ranked,
    RowsSource,
    Steps,
    Unpaired,
    UnpairedFromPairs,
)
from lit_rlhf.data.conversion import Shape
from lit_rlhf.data.encoding import Encoder
from lit_rlhf.data.preparation import Preparation
from lit_rlhf.errors import DataError
from lit_rlhf.testing import make_tokenizer
from tests.public import public_names

FAST, FULL = 60, 2000
ROWS = [{"prompt": f"q{n}é", "chosen": f" a{n}", "rejected": ' "b",\n'} for n in range(6)]


def _csv(delimiter: str) -> bytes:
    lines = [delimiter.join(ROWS[0])]
    lines += [
        delimiter.join('"' + v.replace('"', '""') + '"' for v in row.values()) for row in ROWS
    ]
    return ("\n".join(lines) + "\n").encode()


def _parquet() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
WHOLE: dict[str, bytes] = {
    "a.jsonl": JSONL,
    "a.json": json.dumps(ROWS).encode(),
    "a.csv": _csv(","),
    "a.tsv": _csv("\t"),
    "a.parquet": _parquet(),
    "a.jsonl.gz": gzip.compress(JSONL),
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(6)
    data = bytearray(content)
    place = rng.randrange(len(data))
    if kind == 0:
        return rng.randbytes(rng.randrange(300))
    if kind == 1:
        del data[place:]
    elif kind == 2:
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 3:
        data[place:place] = rng.choice(
            [b"\x00", b"\xff\xfe", b'"', b"\n", b"[[[[", b"\\ud83d", b"}", b",", b"1e999"]
        )
    elif kind == 4:
        del data[place : place + rng.randrange(1, 40)]
    else:
        data += data[:place]
    return bytes(data)


def prepare(source: Any, format_: Format) -> Preparation:
    return Preparation(source, format_, Encoder(make_tokenizer()), Shape((0, None), fields=FIELDS))


FIELDS = ("margin", "p_chosen", "score", "label", "step_label")
sizes = pytest.mark.parametrize("inputs", [FAST, pytest.param(FULL, marks=pytest.mark.slow)])


@sizes
@pytest.mark.parametrize("name", WHOLE)
def test_damaged_files(name: str, inputs: int, tmp_path: Path) -> None:
    path, used, refused = tmp_path / name, 0, 0
    for seed in range(inputs):
        path.write_bytes(damaged(WHOLE[name], random.Random(f"{name} {seed}")))
        preparation = prepare(FileSource(str(path)), ExplicitPrompt())
        try:
            rows = list(preparation)
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
            continue
        report = preparation.report
        assert len(rows) == report.records
        assert report.records + sum(report.counts.values()) == report.rows
        used += 1
    assert refused
    assert used or name.endswith(".gz")  # whose checksum sees everything


FORMATS: dict[str, tuple[Format, dict[str, Any]]] = {
    "explicit": (ExplicitPrompt(), {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1}),
    "implicit": (
        ImplicitPrompt(),
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    ),
    "demonstration": (Demonstration(), {"prompt": "q", "completion": "a"}),
    "conversation": (
        Conversation(),
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "tools": None,
        },
    ),
    "text": (PlainText(), {"text": "a"}),
    "prompts": (PromptOnly(), {"prompt": "q", "answer": 1}),
    "ranked": (Ranked(), {"prompt": "q", "completions": ["a", "b", "c"], "scores": [1, 2, 3]}),
    "pairs of rankings": (
        PairsFromRanking(Ranked()),
        {"prompt": "q", "completions": ["a", "b"], "scores": [1, 2]},
    ),
    "steps": (AsChat(Steps()), {"prompt": "q", "completions": ["a", "b"], "labels": [1, 0]}),
    "unpaired": (Unpaired(), {"prompt": "q", "completion": "a", "label": True}),
    "unpaired pairs": (
        UnpairedFromPairs(ExplicitPrompt()),
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ),
    "chat": (
        AsChat(ChosenOf(ExplicitPrompt()), system="s"),
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ),
    "prompts of": (PromptsOf(ExplicitPrompt()), {"prompt": "q", "chosen": "a", "rejected": "b"}),
}
DEEP: list[Any] = []
for _ in range(300):
    DEEP = [DEEP]
ODD: list[Any] = [
    None,
    "",
    " ",
    "\ud83d",
    "\x00",
    "<eos>",
    "a" * 3000,
    0,
    -1,
    10**400,
    1e308,
    float("nan"),
    True,
    [],
    [[]],
    {},
    DEEP,
    {"role": "user"},
    [{"role": "user", "content": "\udc80"}],
    [{"role": 5, "content": "a"}],
    ["a", 1],
    ["a", "a"],
    [{"role": "assistant", "content": None}],
    [{"role": "tool", "content": [{"type": "text", "text": 1}]}],
    b"\xff",
    [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
        }
    ],
    [None],
    "{",
]


def mutants(row: dict[str, Any], rng: random.Random) -> Iterator[dict[str, Any]]:
    for _ in range(2):
        changed = dict(row)
        for _ in range(rng.randrange(1, 3)):
            name = rng.choice([*row, "tools", "chat_template_kwargs", "margin", "p_chosen"])
            value = rng.choice(ODD)
            inner = changed.get(name)
            if isinstance(inner, list) and inner and rng.random() < 0.5:
                value = [
                    value if n == rng.randrange(len(inner)) else item
                    for n, item in enumerate(inner)
                ]
            changed[name] = value
            if rng.random() < 0.1:
                del changed[name]
        yield changed


@sizes
@pytest.mark.parametrize("name", FORMATS)
def test_odd_values(name: str, inputs: int) -> None:
    format_, good = FORMATS[name]
    rng = random.Random(name)
    rows = [row for _ in range(inputs // 2) for row in mutants(good, rng)]
    preparation = prepare(RowsSource([good, *rows, good]), format_)
    used = list(preparation)
    report = preparation.report
    assert report.rows == len(rows) + 2
    assert len(used) == report.records >= 2
    assert report.records + sum(report.counts.values()) >= report.rows
    assert {0, len(rows) + 1} <= {row["row"] for row in used}


OPTION_VALUES: list[Any] = [
    -1,
    0,
    2.5,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x y",
    [],
    {},
    object(),
    True,
    None,
]


def classes() -> list[Callable[..., Any]]:
    import lit_rlhf.data

    names = [
        n
        for n in public_names("lit_rlhf.data")
        if n not in ("Record", "InvalidRowError", "Format", "Source", "BranchedDataModule")
    ]
    return [getattr(lit_rlhf.data, name) for name in names]


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_bad_options_are_refused_in_a_sentence(kind: Callable[..., Any]) -> None:
    from lit_rlhf.data import ArithmeticSource, DemonstrationDataModule, Portion
    from lit_rlhf.data.datamodule import BranchedDataModule
    from lit_rlhf.data.keys import option_names
    from lit_rlhf.errors import ConfigurationError

    assert isinstance(kind, type)
    if issubclass(kind, BranchedDataModule):
        required: dict[str, Any] = {"train": ArithmeticSource(2), "tokenizer": make_tokenizer()}
        if "text" in option_names(kind):
            required["text"] = DemonstrationDataModule(**required)
    else:
        known = {"format": Demonstration(), "path": "a.jsonl", "name": "a", "rows": [{"a": 1}]}
        known["portions"] = [Portion(path="a.jsonl")]
        required = {name: known[name] for name in option_names(kind) if name in known}
        if kind is ArithmeticSource:
            required = {}
    kind(**required)
    refused = 0
    for name in option_names(kind):
        for value in OPTION_VALUES:
            try:
                made = kind(**{**required, name: value})
                if isinstance(made, Format):
                    made.reads()
            except ConfigurationError as error:
                assert name in str(error) and str(error).endswith(".")  # noqa: PT017
                refused += 1
    assert refused >= 4 * len(option_names(kind))
