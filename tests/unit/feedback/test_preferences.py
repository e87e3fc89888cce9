import json
from itertools import product
from pathlib import Path

import pytest
import torch

from lit_rlhf.data import FileSource, PreferenceDataModule
from lit_rlhf.errors import DataError, FileError
from lit_rlhf.feedback import LabelStore, Pair, Vote, agreement, export_preferences, progress


def votes(*columns: str) -> list[Vote]:
    """One column per pair, one character per rater: f, s, t, skip (-) or nothing (space)."""
    kinds = {"f": "first", "s": "second", "t": "tie", "-": "skip"}
    return [
        Vote(pair, f"rater {i}", kinds[letter])
        for pair, column in enumerate(columns)
        for i, letter in enumerate(column)
        if letter != " "
    ]


def alpha_by_pairs(columns: list[str]) -> float:
    """Krippendorff's alpha from its definition, with the ordinal distance on the scale f, t, s."""
    kept = [column.replace(" ", "") for column in columns if len(column.replace(" ", "")) > 1]
    everything = "".join(kept)

    def distance(a: str, b: str) -> float:
        low, high = sorted(("fts".index(a), "fts".index(b)))
        between = sum(everything.count(letter) for letter in "fts"[low : high + 1])
        return float(between - (everything.count(a) + everything.count(b)) / 2) ** 2

    observed = sum(
        sum(distance(a, b) for a, b in product(c, repeat=2)) / (len(c) - 1) for c in kept
    )
    expected = sum(distance(a, b) for a, b in product(everything, repeat=2))
    return 1 - observed / (expected / (len(everything) - 1))


@pytest.mark.parametrize(
    "columns",
    [["ff", "ss", "fs", "ff ", "s s", "sfs", "f  "], ["ff", "tt", "ft", "s s", "sts", "t"]],
)
def test_agreement_is_krippendorffs_alpha(columns: list[str]) -> None:
    assert agreement(votes(*columns)) == pytest.approx(alpha_by_pairs(columns), abs=1e-12)


@pytest.mark.parametrize(
    ("columns", "alpha"),
    [(["ff", "ss", "tt"], 1.0), (["ff", "ff"], None), (["f", "s"], None), ([], None)],
)
def test_agreement_at_its_edges(columns: list[str], alpha: float | None) -> None:
    assert agreement(votes(*columns)) == alpha


@pytest.fixture
def judged(store: LabelStore) -> LabelStore:
    given = {
        1: ["first", "first"],
        2: ["second", "tie"],
        3: ["first", "second"],
        4: ["flag", "first"],
        5: ["skip", "skip"],
    }
    for pair, verdicts in given.items():
        for rater, verdict in zip(("ann", "bob"), verdicts, strict=True):
            attributes = {"helpful": "second"} if pair == 2 else {}
            store.vote(
                Vote(pair, rater, verdict, attributes=attributes, comment="why" * (pair == 1))
            )
    return store


def test_export_says_what_it_did(judged: LabelStore, tmp_path: Path) -> None:
    done = export_preferences(judged, tmp_path / "new" / "out.jsonl")
    assert (done.rows, done.tied, done.flagged, done.skipped, done.unseen) == (3, 1, 1, 1, 1)
    assert "3 pairs, 1 of them tied; left out: 1 flagged, 1 skipped, 1 without a vote" in str(done)
    rows = [json.loads(line) for line in done.path.read_text().splitlines()]
    assert rows[1] == {
        "prompt": "question 1?",
        "chosen": "bad 1",
        "rejected": "good 1",
        "p_chosen": 0.75,
        "votes": 2,
        "attributes": {"helpful": 1.0},
        "comments": [],
    }
    assert [row["p_chosen"] for row in rows] == [1.0, 0.75, 0.5]
    assert rows[0]["comments"] == ["why", "why"]


def test_the_data_module_reads_the_export(
    judged: LabelStore, tmp_path: Path, tiny_model_dir: Path
) -> None:
    done = export_preferences(judged, tmp_path / "out.jsonl")
    data = PreferenceDataModule(
        FileSource(str(done.path)), tokenizer=str(tiny_model_dir), batch_size=3
    )
    data.prepare_data()
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert torch.equal(batch["p_chosen"].sort().values, torch.tensor([0.5, 0.75, 1.0]))
    text = data.tokenizer.batch_decode(batch["input_ids"])
    assert any("question 1?bad 1" in row for row in text)


def test_messages_come_back_as_messages(tmp_path: Path, tiny_model_dir: Path) -> None:
    store = LabelStore(tmp_path)
    turn = [{"role": "user", "content": "hi"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("hello", "go")]
    store.add([Pair(turn, *answers)])
    store.vote(Vote(1, "ann", "second"))
    done = export_preferences(store, tmp_path / "out.jsonl")
    row = json.loads(done.path.read_text())
    assert (row["prompt"], row["chosen"], row["rejected"]) == (turn, answers[1], answers[0])
    data = PreferenceDataModule(
        FileSource(str(done.path)), tokenizer=str(tiny_model_dir), batch_size=1
    )
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_dataloader()) == 1


def test_nothing_to_export(store: LabelStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pair to export: 0 flagged, 6 of 6 without a vote"):
        export_preferences(store, tmp_path / "out.jsonl")
    store.vote(Vote(1, "ann", "tie"))
    with pytest.raises(FileError, match="The preferences"):
        export_preferences(store, tmp_path)


def test_progress(judged: LabelStore) -> None:
    seen = progress(judged)
    assert (seen.pairs, seen.done) == (6, 4)
    assert seen.raters == {"ann": 5, "bob": 5}
    assert seen.verdicts == {"first": 4, "second": 2, "tie": 1, "flag": 1, "skip": 2}
    assert seen.shown_first == pytest.approx(4 / 6)
