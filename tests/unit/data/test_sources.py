import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from lit_rlhf.data import (
    DirectorySource,
    FileSource,
    HubSource,
    InvalidRowError,
    PreferenceDataModule,
    RowsSource,
    Source,
)
from lit_rlhf.errors import ConfigurationError, DataError

ROWS = [
    {"prompt": "NA", "n": 1},
    {"prompt": 'a "quoted", naïve\nline', "n": 2},
    {"prompt": "null", "n": 3},
]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")


def write_gzip(path: Path) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(json.dumps(row) for row in ROWS))


def write_json(path: Path) -> None:
    path.write_text(" \n" + json.dumps(ROWS), encoding="utf-8")


def write_csv(path: Path) -> None:
    path.write_text('prompt,n\nNA,1\n"a ""quoted"", naïve\nline",2\nnull,3\n', encoding="utf-8")


def write_tsv(path: Path) -> None:
    path.write_text('prompt\tn\nNA\t1\n"a ""quoted"", naïve\nline"\t2\nnull\t3\n', encoding="utf-8")


def write_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)


FILES: dict[str, Callable[[Path], None]] = {
    "a.jsonl": write_jsonl,
    "a.JSONL": write_jsonl,
    "a.jsonl.gz": write_gzip,
    "a.json": write_json,
    "lines.json": write_jsonl,
    "a.csv": write_csv,
    "a.tsv": write_tsv,
    "a.parquet": write_parquet,
}


def read(source: Source) -> list[dict[str, Any]]:
    return [dict(row) for row in source.load()]


@pytest.mark.parametrize("name", FILES)
def test_files_give_their_rows(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name)
    rows = read(FileSource(str(tmp_path / name)))
    if name.endswith(
        ("csv", "tsv")
    ):  # text throughout; what reads like a missing value stays what it says
        rows = [{**row, "n": int(row["n"])} for row in rows]
    assert rows == ROWS


@pytest.mark.parametrize("mark", [";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.zst"])
def test_what_spreadsheets_write_in_place_of_commas(tmp_path: Path, mark: str, suffix: str) -> None:
    lines = f'\ufeffprompt{mark}n\r\n"a{mark}b, c"{mark}1\r\nd, e{mark}2\r\n'
    path = tmp_path / f"a{suffix}"
    with pa.output_stream(str(path), compression="zstd" if "zst" in suffix else None) as file:
        file.write(lines.encode())
    found = read(FileSource(str(path)))
    assert [row["n"] for row in found] == ["1", "2"]
    assert found[0]["prompt"] == f"a{mark}b, c"


@pytest.mark.parametrize("line", ["sep={}", '"sep={}"', "SEP={}"])
@pytest.mark.parametrize("mark", [";", "\t", "|", ",", "^"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_the_line_that_tells_excel_the_mark_is_no_row(
    tmp_path: Path, mark: str, line: str, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    rows = f'prompt{mark}n\r\n"a{mark}b"{mark}1\r\nc{mark}2\r\n'
    path.write_bytes(f"\ufeff{line.format(mark)}\r\n{rows}".encode())
    assert read(FileSource(str(path))) == [
        {"prompt": f"a{mark}b", "n": "1"},
        {"prompt": "c", "n": "2"},
    ]
    path.write_bytes(f"{line.format(mark)}\n{rows}d\n".encode())
    *_, last = FileSource(str(path)).load()
    with pytest.raises(InvalidRowError, match=rf"a\{suffix}, line 5 has more or fewer"):
        last["prompt"]


def test_a_header_of_one_name_has_no_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na;b\n")
    assert read(FileSource(str(tmp_path / "a.csv"))) == [{"text": "a;b"}]


def test_several_files_are_read_in_turn_and_rows_are_located_in_theirs(tmp_path: Path) -> None:
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.csv")]
    write_jsonl(tmp_path / "a.jsonl")
    write_csv(tmp_path / "b.csv")
    source = FileSource(paths)
    assert len(read(source)) == 6
    assert [source.locate(row) for row in (0, 2, 3, 5)] == [
        f"{paths[0]}, row 1",
        f"{paths[0]}, row 3",
        f"{paths[1]}, row 1",
        f"{paths[1]}, row 3",
    ]


def test_a_directory_of_the_datasets_library(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict(
        {"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}
    ).save_to_disk(tmp_path / "two")
    assert read(DirectorySource(str(tmp_path / "one"))) == ROWS
    assert read(DirectorySource(str(tmp_path / "two"), split="test")) == ROWS[:1]


def test_the_hub_by_way_of_a_local_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_jsonl_file = tmp_path / "hub" / "train.jsonl"
    write_jsonl_file.parent.mkdir()
    write_jsonl(write_jsonl_file)
    source = HubSource(str(tmp_path / "hub"), split="train")
    assert read(source) == ROWS
    assert source.fingerprint() != HubSource(str(tmp_path / "hub"), split="train[:2]").fingerprint()


@pytest.mark.parametrize("kind", ["rows", "file", "directory"])
def test_fingerprints_are_of_the_content(tmp_path: Path, kind: str) -> None:
    def make(name: str, rows: list[dict[str, Any]]) -> Source:
        if kind == "rows":
            return RowsSource(rows, name=name)
        if kind == "directory":
            Dataset.from_list(rows).save_to_disk(tmp_path / name)
            return DirectorySource(str(tmp_path / name))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        return FileSource(str(tmp_path / f"{name}.jsonl"))

    changed = [*ROWS[:2], {"prompt": "null", "n": 4}]
    assert make("a", ROWS).fingerprint() == make("b", ROWS).fingerprint()
    assert make("a", ROWS).fingerprint() != make("c", changed).fingerprint()
    assert make("a", ROWS).fingerprint() != make("d", ROWS[::-1]).fingerprint()


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "torn.jsonl": (
        b'{"a": 1}\n{"a": 2\n',
        r"torn\.jsonl, line 2 is no JSON.*starts with '\{\"a\": 2",
    ),
    "list.jsonl": (b'{"a": 1}\n[1]\n', r"list\.jsonl, line 2 is a list, not an object"),
    "torn.json": (b'[{"a": 1},', r"torn\.json is no JSON"),
    "list.json": (b"[1, 2]", r"list\.json, element 1 is a int"),
    "latin.jsonl": (
        '{"a": "é"}'.encode("latin-1"),
        r"latin\.jsonl, line 1 is no utf-8 text.*encoding",
    ),
    "ragged.csv": (
        b"a,b\n1,2\n1,2,3\n",
        r"ragged\.csv, line 3 has more or fewer fields.*\['a', 'b'\]",
    ),
    "short.csv": (b"a,b\n1\n", r"short\.csv, line 2 has more or fewer fields"),
    "quote.csv": (b'a,b\n"1,2\n', r"quote\.csv, near line 2: unexpected end"),
    "torn.jsonl.gz": (gzip.compress(b'{"a": 1}\n' * 100)[:-9], r"torn\.jsonl\.gz can't be read"),
    "no.jsonl.gz": (b"plain", r"no\.jsonl\.gz can't be read"),
    "torn.parquet": (b"PAR1....", r"torn\.parquet is no Parquet file"),
    "some.txt": (b"a", r"Can't tell.*some\.txt.*\.jsonl, \.json, \.csv, \.tsv, \.parquet"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_with_the_place(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"(?s){message}"):
        read(FileSource(str(tmp_path / name)))


def test_a_parquet_file_of_one_large_row_group_is_not_held_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.bytes(60).hex() for _ in range(100_000)]
    path = tmp_path / "large.parquet"
    pyarrow.parquet.write_table(pa.table({"prompt": texts}), path, row_group_size=len(texts))
    before = pa.total_allocated_bytes()
    rows = iter(FileSource(str(path)).load())
    assert next(rows) == {"prompt": texts[0]}
    assert path.stat().st_size > 8_000_000
    assert pa.total_allocated_bytes() - before < 4_000_000


def test_a_latin_1_file_is_read_when_told(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes('{"a": "é"}'.encode("latin-1"))
    assert read(FileSource(str(tmp_path / "latin.jsonl"), encoding="latin-1")) == [{"a": "é"}]


def test_rows_that_are_no_list_are_refused_with_the_way_to_one(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    for given, way in (
        (Dataset.from_list(rows), "to_list()"),
        (pandas.DataFrame(rows), "to_dict('records')"),
    ):
        with pytest.raises(ConfigurationError, match=re.escape(f"rows.{way} makes one")):
            RowsSource(given)  # type: ignore[arg-type]
        assert eval(f"rows.{way}", {"rows": given}) == rows
    for given in ("a.jsonl", rows):
        with pytest.raises(ConfigurationError, match=r"FileSource\(path\), of rows in Python Rows"):
            PreferenceDataModule(given, tokenizer="t")


@pytest.mark.parametrize(
    ("found", "way"),
    [
        ({"version": "1", "data": ROWS}, "the list 'data' of it"),
        ({"text": "All", "data": [{"prompt": "p", "completion": "a"}]}, "the list 'data' of it"),
        ({"prompt": ["a", "b"], "chosen": ["c", "d"]}, "orient='records'"),
        ({"prompt": {"0": "a", "1": "b"}, "chosen": {"0": "c", "1": "d"}}, "orient='records'"),
        ({"7": ROWS[0], "9": ROWS[1]}, "orient='records'"),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_file_that_is_one_object_around_its_rows_is_refused(
    found: dict[str, Any], way: str, indent: int | None, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(found, indent=indent))
    with pytest.raises(DataError, match=f"a.json is one object, .* write .*{way}"):
        list(FileSource(str(tmp_path / "a.json")).load())


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a"}]},
        {"prompt": "q", "completions": ["a", "b"], "scores": [1, 2]},
        {"question": {"problem": "q"}, "label": {"steps": []}},
        {"text": "a"},
        {"prompt": "q", "completion": "a", "data": [{"year": 1990}, {"year": 1991}]},
        {"prompt": "q", "samples": [{"text": "a", "score": 1}, {"text": "b", "score": 2}]},
        {"question": "q", "data": [{"role": "user", "content": "a"}]},
    ],
)
def test_a_json_file_may_be_one_row(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(row))
    assert list(FileSource(str(tmp_path / "a.json")).load()) == [row]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file .*nowhere\.jsonl"):
        FileSource(str(tmp_path / "nowhere.jsonl")).fingerprint()
    with pytest.raises(DataError, match=r"nowhere is no directory that `save_to_disk`"):
        DirectorySource(str(tmp_path / "nowhere")).load()
    with pytest.raises(DataError, match="holds no Arrow files"):
        DirectorySource(str(tmp_path)).fingerprint()
    with pytest.raises(DataError, match=r"Can't load the data set .*nowhere\[train\].*FileSource"):
        HubSource(str(tmp_path / "nowhere")).load()
    (tmp_path / "pairs.jsonl").touch()
    with pytest.raises(DataError, match=r"No such file .*Did you mean .*pairs\.jsonl\? It was"):
        HubSource(str(tmp_path / "pairs")).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty\[train\]: .*does it hold data files\? Files on"):
        HubSource(str(tmp_path / "empty")).load()


def test_a_split_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    DatasetDict({"a": Dataset.from_list(ROWS), "b": Dataset.from_list(ROWS)}).save_to_disk(
        tmp_path / "two"
    )
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match=r"holds the splits \['a', 'b'\]; set `split`"):
        DirectorySource(str(tmp_path / "two")).load()
    with pytest.raises(DataError, match="holds one split without a name"):
        DirectorySource(str(tmp_path / "one"), split="train").load()
