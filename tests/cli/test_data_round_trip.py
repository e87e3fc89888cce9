"""What `lit-rlhf data convert` writes gives the batches of what it read: all that a batch can hold is tried."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from transformers import PreTrainedTokenizerFast

from lit_rlhf import data, types
from lit_rlhf.cli import main
from lit_rlhf.data import BranchedDataModule, FileSource, Format, RowsSource
from lit_rlhf.data.recognition import FORMATS, MODULES, Kind, read_as, spell
from lit_rlhf.errors import DataError
from lit_rlhf.evaluation import read_comparisons
from lit_rlhf.testing import make_tokenizer, write_jsonl
from tests.unit.data.contract import equal, ready
from tests.unit.data.shape_cases import READS_TOOLS

USER = [{"role": "user", "content": "Which?"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
RATED = ("helpfulness", "verbosity")
PAIR = {"prompt": "so ", "chosen": "this", "rejected": "that"}
LIKE = {"prompt": "so ", "completion": "this"}
BOTH = {"chosen": "Here it is.", "rejected": "Here it was."}
TURN = "\n\nHuman: Which?\n\nAssistant:"
WHOLE = {"chosen": f"{TURN} This.", "rejected": f"{TURN} That."}
RATINGS = [[3, 1], [0, 2.5]]


def neighbours(**more: Any) -> list[dict[str, Any]]:
    rows = [
        {"prompt": p, "response": a, "helpfulness": h, "verbosity": v}
        for p, a, h, v in (("so ", "this", 3, 1), ("so ", "that", 0, 2), ("or ", "a", 1, 4))
    ]
    return [*rows, {"prompt": "or ", "response": "b", "helpfulness": 4, "verbosity": 3, **more}]


# Kind, format (none: found), rows. Of what is optional the first row has nothing.
CASES: dict[str, tuple[Kind, Format | None, list[dict[str, Any]]]] = {
    "pairs": (
        "pairs",
        None,
        [
            PAIR,
            {**PAIR, "margin": 2.5},
            {**PAIR, "p_chosen": 0.75, "votes": 4, "id": "d"},
            {**PAIR, "subset": "c"},
        ],
    ),
    "pairs with tools": (
        "pairs",
        None,
        [
            {**PAIR, "prompt": USER},
            {**PAIR, "prompt": USER, "tools": TOOLS, "chat_template_kwargs": {"deep": True}},
        ],
    ),
    "rated pairs": (
        "pairs",
        None,
        [
            {**PAIR, "attributes": RATINGS},
            {**PAIR, "attributes": RATINGS[::-1], "margin": 1, "subset": "a"},
        ],
    ),
    "scored pairs": (
        "pairs",
        data.ExplicitPrompt(chosen_score="a", rejected_score="b"),
        [{**PAIR, "a": 1, "b": 3}, {**PAIR, "a": 2.5, "b": 1}],
    ),
    "rated transcripts": (
        "pairs",
        data.ImplicitPrompt(attributes="r"),
        [{**WHOLE, "r": RATINGS}, {**WHOLE, "r": RATINGS[::-1], "p_chosen": 0.9}],
    ),
    "rated beginnings": (
        "pairs",
        data.SharedPrefix(attributes="r"),
        [{**BOTH, "r": RATINGS}, {**BOTH, "r": RATINGS[::-1], "margin": 0.5}],
    ),
    "rated neighbours": ("pairs", data.HelpSteer2Pairs(attributes=RATED), neighbours()),
    "rated answers": (
        "unpaired",
        data.HelpSteer2Ratings(attributes=RATED),
        neighbours(subset="a"),
    ),
    "labels": ("unpaired", None, [{**LIKE, "label": 1}, {**LIKE, "label": 0, "subset": "a"}]),
    "scores": ("unpaired", None, [{**LIKE, "score": 0.5}, {**LIKE, "score": -2, "subset": "a"}]),
    "rated labels": (
        "unpaired",
        data.Unpaired(attributes=("a", "b")),
        [{**LIKE, "label": 1, "a": 2, "b": [0.5, 3]}, {**LIKE, "label": 0, "a": 1, "b": [4, 0]}],
    ),
    "rated scores": (
        "unpaired",
        data.Unpaired(score="score", attributes=("a",)),
        [{**LIKE, "score": 1, "a": 2}, {**LIKE, "score": 0, "a": 1.5}],
    ),
    "rankings": (
        "rankings",
        None,
        [
            {"prompt": "so ", "completions": ["a", "b", "c"], "scores": [1, 0.5, 3]},
            {"prompt": "so ", "completions": ["a", "b"], "scores": [1, 2], "subset": "a"},
        ],
    ),
    "sets": (
        "rankings",
        None,
        [
            {"prompt": "Which?", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math"},
            {"prompt": "Which?", "chosen": ["a", "b"], "rejected": ["c"], "id": "tied:0"},
        ],
    ),
    "steps": (
        "steps",
        None,
        [
            {"prompt": "so ", "completions": ["a", "b", "c"], "labels": [1, 0.5, 0]},
            {"prompt": "so ", "completions": ["a", "b"], "labels": [1, 0], "subset": "a"},
        ],
    ),
    "demonstrations": (
        "demonstrations",
        None,
        [
            {"messages": [*USER, {"role": "assistant", "content": "This."}]},
            {"messages": [*USER, {"role": "assistant", "content": "That."}], "tools": TOOLS},
        ],
    ),
    "text": ("text", None, [{"text": "so it is"}, {"text": "it is so"}]),
    "prompts": (
        "prompts",
        None,
        [{"prompt": "so ", "answer": 4}, {"prompt": "so ", "answer": 3, "topic": ["a", "b"]}],
    ),
}
COMPUTED = {
    "ref_logprobs",
    "lengths",
    "text",
}  # what no row has: of a reference, or of another data set


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    made = make_tokenizer()
    made.chat_template = READS_TOOLS + "{{ deep }}" + str(made.chat_template)
    return made


def batch_of(kind: Kind, source: Any, tokenizer: Any, **options: Any) -> dict[str, Any]:
    module = getattr(data, MODULES[kind])(source, tokenizer=tokenizer, batch_size=1, **options)
    assert isinstance(module, BranchedDataModule)
    rows = ready(module).rows["train"]
    return dict(module.collator()([rows[place] for place in range(len(rows))]))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", CASES)
def test_the_batch_is_the_same(
    name: str, suffix: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    kind, reader, rows = CASES[name]
    path, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / f"out{suffix}"
    words = [] if reader is None else [f"--format={type(reader).__name__}"]
    options = () if reader is None else fields(reader)  # type: ignore[arg-type]
    words += [
        f"--format.{option.name}={value if isinstance(value, str) else json.dumps(value)}"
        for option in options
        if (value := getattr(reader, option.name)) != option.default
    ]
    main(["data", "convert", str(path), str(output), *words])
    given = batch_of(kind, FileSource(str(path)), tokenizer, format=reader)
    read = batch_of(kind, FileSource(str(output)), tokenizer)
    assert given.keys() == read.keys()
    assert equal(given, read)


def test_all_that_a_batch_can_hold_is_tried(tokenizer: PreTrainedTokenizerFast) -> None:
    seen: dict[str, set[str]] = {}
    for kind, reader, rows in CASES.values():
        module = MODULES[kind].removesuffix("DataModule")
        found = batch_of(kind, RowsSource(rows), tokenizer, format=reader)
        seen.setdefault(module, set()).update(found)
    for module, names in seen.items():
        declared = get_type_hints(getattr(types, f"{module}Batch"))
        assert names == declared.keys() - COMPUTED | {"attention_mask"}
        shape = getattr(data, f"{module}DataModule").shape
        assert {*shape.one_of, *shape.fields} <= names
    rating = {kind for kind in FORMATS if "attributes" in {each.name for each in fields(kind)}}  # type: ignore[arg-type]
    tried = {type(reader) for _, reader, _ in CASES.values() if reader is not None}
    assert rating <= tried
    assert {kind for kind, _, _ in CASES.values()} == {*MODULES}


@pytest.mark.parametrize("name", ["pairs", "rated pairs"])
def test_ordinary_rows_have_what_a_branched_batch_has(
    name: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    _, reader, rows = CASES[name]
    branched, plain = (
        batch_of("pairs", RowsSource(rows), tokenizer, format=reader, layout=layout)
        for layout in ("branched", "rows")
    )
    tokens = {"input_ids", "branch_ids", "position_ids", "attention_mask"}
    beside = {key: value for key, value in branched.items() if key not in tokens}
    assert equal({key: plain.get(key) for key in beside}, beside)


def test_an_evaluation_reads_the_same(tmp_path: Path) -> None:
    rows = CASES["pairs"][2]
    path, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet"
    main(["data", "convert", str(path), str(output)])
    given, read = (read_comparisons(FileSource(str(each))) for each in (path, output))
    assert given.items == read.items
    assert [(each.votes, each.name, each.subset) for each in read.items][2:] == [
        (4, "d", ""),
        (None, "", "c"),
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_sets_of_answers_stay_sets(suffix: str, tmp_path: Path) -> None:
    """Neither the good nor the bad have an order among them, and the best of all is asked for."""
    path, output = write_jsonl(tmp_path / "in.jsonl", CASES["sets"][2]), tmp_path / f"out{suffix}"
    main(["data", "convert", str(path), str(output)])
    wrapped = data.AsChat(data.AnswerSets())
    given, read = (read_comparisons(FileSource(str(each)), wrapped) for each in (path, output))
    assert given.items == read.items
    assert [(each.kind, each.values, each.name) for each in read.items] == [
        ("sets", (1, 0, 0, 0), ""),
        ("sets", (1, 1, 0), "tied:0"),
    ]


def test_rated_rows_can_be_compared_and_split(tokenizer: PreTrainedTokenizerFast) -> None:
    turned = {**PAIR, "attributes": RATINGS, "p_chosen": 0.25}  # the second is preferred
    source = RowsSource([{**PAIR, "attributes": RATINGS}, turned])
    assert len(read_comparisons(source).items) == 2
    batch = batch_of("unpaired", source, tokenizer)
    assert batch["label"].tolist() == [True, False, True, False]
    assert batch["attributes"].tolist() == [[[3, 1]], [[0, 2.5]], [[0, 2.5]], [[3, 1]]]


def test_votes_by_attribute_are_no_ratings() -> None:
    """`lit-rlhf annotate` writes shares of votes under the same name."""
    row = {**PAIR, "attributes": {"helpful": 0.5}}
    assert spell(read_as([row], "rows", None, None).format) == "ExplicitPrompt()"


@pytest.mark.parametrize("odd", [None, [[1, 2], [3, 4]], "rated", "missing"])
@pytest.mark.parametrize("turned", [False, True])
def test_ratings_of_some_rows_cost_no_others(
    odd: Any, turned: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A run that doesn't ask for them has all rows."""
    for kind, plain, rated in (
        ("pairs", PAIR, [[1], [2]]),
        ("unpaired", {**LIKE, "label": 1}, [1]),
        ("unpaired", {**LIKE, "score": 1}, [1]),
    ):
        other = plain if odd == "missing" else {**plain, "attributes": odd}
        rows = [{**plain, "attributes": rated}, other]
        found = batch_of(kind, RowsSource(rows[::-1] if turned else rows), tokenizer)  # type: ignore[arg-type]
        assert len(found["index"]) == 2
        assert "attributes" not in found


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [{**PAIR, "attributes": [[1, 2], [3]]}],
            r"doesn't rate two answers alike .*\[2, 1\]",
        ),
        ([{**PAIR, "attributes": [[1], []]}], "'attributes' is empty"),
        ([{**LIKE, "label": 1, "attributes": ["x"]}], "'attributes' is no number"),
    ],
)
def test_bad_ratings_are_counted(
    rows: list[dict[str, Any]], words: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = "chosen" in rows[0]
    reader: Format = data.ExplicitPrompt(attributes="attributes")
    if not pairs:
        reader = data.Unpaired(attributes=("attributes",))
    with pytest.raises(DataError, match=words):
        batch_of("pairs" if pairs else "unpaired", RowsSource(rows), tokenizer, format=reader)


def test_ratings_of_another_number_are_not_padded(tokenizer: PreTrainedTokenizerFast) -> None:
    few, many = ({**LIKE, "label": 1, "attributes": ratings} for ratings in ([1, 2], [1, 2, 3]))
    reader = data.Unpaired(attributes=("attributes",))
    module = data.UnpairedDataModule(RowsSource([few, many]), format=reader, tokenizer=tokenizer)
    assert ready(module).reports["train"].counts == {"fields differ from the first row's": 1}
    portions = [
        data.Portion(source=RowsSource([row], name=str(n))) for n, row in enumerate((few, many))
    ]
    with pytest.raises(DataError, match="3 attributes"):
        ready(data.UnpairedDataModule(data.Mixture(portions), tokenizer=tokenizer))
