"""Patterns, directories of shards, compressed files and addresses: read for real, or refused in a sentence."""

import bz2
import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from lit_rlhf.data import DirectorySource, FileSource, HubSource, PreferenceDataModule
from lit_rlhf.data.sources import local_source
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.testing import make_tokenizer
from tests.loopback import Answer, Request, serving


def lines(*numbers: int) -> bytes:
    return b"".join(json.dumps({"n": n}).encode() + b"\n" for n in numbers)


def read(path: str | list[str], **options: Any) -> list[int]:
    return [row["n"] for row in FileSource(path, **options).load()]


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


COMPRESSED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_compressed_shards_are_read_in_the_order_of_their_names(
    tmp_path: Path, suffix: str
) -> None:
    for number in (2, 0, 1):
        content = COMPRESSED[suffix](lines(number, number + 10))
        (tmp_path / f"part-{number}.jsonl{suffix}").write_bytes(content)
    (tmp_path / "other.jsonl").write_bytes(lines(99))
    assert read(f"{tmp_path}/part-*.jsonl{suffix}") == [0, 10, 1, 11, 2, 12]


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_a_torn_shard_is_named(tmp_path: Path, suffix: str) -> None:
    whole = COMPRESSED[suffix](lines(*range(3000)))
    (tmp_path / f"a.jsonl{suffix}").write_bytes(whole)
    (tmp_path / f"b.jsonl{suffix}").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=rf"b\.jsonl\{suffix} can't be read"):
        read(str(tmp_path))


def test_patterns_reach_into_directories_and_names_with_brackets_are_names(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "deep.jsonl").write_bytes(lines(1))
    (tmp_path / "top[1].jsonl").write_bytes(lines(2))
    assert read(f"{tmp_path}/**/*.jsonl") == [1, 2]
    assert read(f"{tmp_path}/top[1].jsonl") == [2]
    assert read([f"{tmp_path}/top[1].jsonl", f"{tmp_path}/a/*/*.jsonl"]) == [2, 1]
    with pytest.raises(DataError, match=r"No file matches .*/none\*\.jsonl"):
        read(f"{tmp_path}/none*.jsonl")
    (tmp_path / "a" / "notes.txt").write_text("?")
    with pytest.raises(DataError, match=r"Can't tell from its name what .*notes\.txt holds"):
        read(f"{tmp_path}/a/*.txt")


def test_a_row_is_located_in_its_shard(tmp_path: Path) -> None:
    for name, content in (("a", lines(1, 2)), ("b", lines(3) + b"{torn\n")):
        (tmp_path / f"{name}.jsonl").write_bytes(content)
    source = FileSource(str(tmp_path))
    *_, last = source.load()
    assert source.locate(1) == f"{tmp_path}/a.jsonl, row 2"
    assert source.locate(3) == f"{tmp_path}/b.jsonl, row 2"
    assert f"{tmp_path}/b.jsonl, line 2 is no JSON" in str(last.error)  # type: ignore[attr-defined]


class TestDirectories:
    """A directory means its data files, where there is one way to read it."""

    def test_what_is_no_data_is_left(self, tmp_path: Path) -> None:
        for name in ("README.md", ".hidden.jsonl", "_SUCCESS", "b.jsonl", "a.jsonl"):
            (tmp_path / name).write_bytes(lines(1 if name == "a.jsonl" else 2))
        assert read(str(tmp_path)) == [1, 2]

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ([], r"holds no file with a known suffix .*/\*\*/\*\.jsonl"),
            (["a.jsonl", "info.json"], r"several kinds \(\.json, \.jsonl\).*pattern such as"),
            (
                ["train-0.jsonl", "test-0.jsonl"],
                r"several splits \(test, train\).*/\*train\*\.jsonl",
            ),
            (["README.md", "data/train-0.jsonl"], r"pattern such as \S+/data/\*train\*\.jsonl"),
            (["data/deep/0.jsonl"], r"pattern such as \S+/data/deep/\*\.jsonl"),
            (["a/b/0.jsonl", "c/0.jsonl"], r"pattern such as \S+/\*\*/\*\.jsonl"),
            (["train/0.jsonl", "test/0.jsonl"], r"pattern such as \S+/(train|test)/\*\.jsonl"),
            (["data.arrow", "state.json"], r"`save_to_disk`.*DirectorySource"),
        ],
    )
    def test_what_can_mean_several_things_is_refused(
        self, tmp_path: Path, names: list[str], message: str
    ) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(lines(1))
        with pytest.raises(DataError, match=message):
            read(str(tmp_path))

    def test_the_kind_of_a_directory_is_seen(self, tmp_path: Path) -> None:
        from datasets import Dataset

        Dataset.from_list([{"n": 1}]).save_to_disk(tmp_path / "saved")
        assert isinstance(local_source(str(tmp_path / "saved")), DirectorySource)
        assert isinstance(local_source(str(tmp_path)), FileSource)


@pytest.fixture
def memory() -> Iterator[Any]:
    """Fsspec's file system in memory, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


class TestAddresses:
    """`memory://` stands for stores of objects, a server on loopback for the web."""

    def test_files_patterns_and_directories(self, memory: Any) -> None:
        for number in (1, 0):
            memory.pipe(f"/bucket/part-{number}.jsonl.gz", gzip.compress(lines(number)))
        memory.pipe("/bucket/README.md", b"?")
        assert read("memory://bucket/part-1.jsonl.gz") == [1]
        assert read("memory://bucket/*.jsonl.gz") == [0, 1]
        assert read("memory://bucket") == [0, 1]
        with pytest.raises(DataError, match=r"No file matches memory://bucket/x\*\.jsonl"):
            read("memory://bucket/x*.jsonl")
        with pytest.raises(DataError, match=r"There is no file memory://bucket/none\.jsonl"):
            read("memory://bucket/none.jsonl")

    def test_parquet(self, memory: Any) -> None:
        with memory.open("/bucket/a.parquet", "wb") as file:
            pyarrow.parquet.write_table(pa.table({"n": [1, 2]}), file)
        assert read("memory://bucket/a.parquet") == [1, 2]

    def test_content_names_the_tokens_wherever_it_lies(self, memory: Any, tmp_path: Path) -> None:
        memory.pipe("/bucket/a.jsonl", lines(1))
        (tmp_path / "b.jsonl").write_bytes(lines(1))
        there, here = FileSource("memory://bucket/a.jsonl"), FileSource(str(tmp_path / "b.jsonl"))
        before = there.fingerprint()
        assert before == here.fingerprint()
        memory.pipe("/bucket/a.jsonl", lines(2))
        assert there.fingerprint() != before
        assert read("memory://bucket/a.jsonl") == [2]

    def test_rows_are_located_at_their_address(self, memory: Any) -> None:
        memory.pipe("/bucket/a.jsonl", b"{torn\n")
        source = FileSource("memory://bucket/a.jsonl")
        (row,) = source.load()
        assert "memory://bucket/a.jsonl, line 1 is no JSON" in str(row.error)  # type: ignore[attr-defined]
        assert source.locate(0) == "memory://bucket/a.jsonl, row 1"

    def test_a_missing_package_is_named(self) -> None:
        with pytest.raises(ConfigurationError, match=r"s3://b/a\.jsonl can't be read .*s3fs"):
            read("s3://b/a.jsonl")
        with pytest.raises(ConfigurationError, match=r"gs://b/a\.jsonl can't be read .*gcsfs"):
            read("gs://b/a.jsonl")
        with pytest.raises(ConfigurationError, match=r"what://b can't be read: Protocol not known"):
            read("what://b")

    def test_the_web(self) -> None:
        served = {"/data/a.jsonl.gz": gzip.compress(lines(1, 2))}

        def answer(request: Request) -> Answer:
            path, _, query = request.path.partition("?")
            assert query == "download=true"
            headers = {"ETag": '"1"'}
            return Answer(served[path], headers=headers) if path in served else Answer(status=404)

        with serving(answer) as server:
            address = f"{server.url}/data/a.jsonl.gz?download=true"
            assert read(address) == [1, 2]
            asked = len(server.requests)
            assert read(address) == [1, 2]
            assert len(server.requests) - asked <= 2  # whether it is still the same; not the file
            with pytest.raises(DataError, match=r"There is no file http://\S*/none\.jsonl, or"):
                read(f"{server.url}/none.jsonl?download=true")
            asked = len(server.requests)
            with pytest.raises(
                DataError, match=r"Can't tell from its name what http://\S*/page holds"
            ):
                read(f"{server.url}/page?download=true")
            assert len(server.requests) == asked

    def test_options_reach_the_server(self) -> None:
        with serving(lambda _: Answer(lines(1))) as server:
            token = {"headers": {"Authorization": "Bearer x"}}
            assert read(f"{server.url}/a.jsonl", storage_options=token) == [1]
            assert {request.headers["authorization"] for request in server.requests} == {"Bearer x"}

    def test_a_connection_that_breaks_is_tried_again_and_leaves_no_half_file(
        self, cache_dir: Path
    ) -> None:
        broken = 3  # HEAD's stand-in, and two of three attempts to fetch

        def answer(_: Request) -> Answer:
            nonlocal broken
            broken -= 1
            return Answer(lines(*range(5000)), cut=0 <= broken < 2)

        with serving(answer) as server:
            assert len(read(f"{server.url}/a.jsonl")) == 5000

        with (
            serving(lambda _: Answer(lines(*range(5000)), cut=True)) as server,
            pytest.raises(DataError, match=r"http://.*/a\.jsonl (can't be fetched|came)"),
        ):
            read(f"{server.url}/a.jsonl")
        assert len(list(cache_dir.rglob("*.jsonl"))) == 1

    def test_a_data_module_trains_from_an_address(self, memory: Any) -> None:
        rows = [{"prompt": f"{n}?", "chosen": " yes", "rejected": " no"} for n in range(6)]
        memory.pipe("/b/pairs.jsonl", "\n".join(map(json.dumps, rows)).encode())
        source = FileSource("memory://b/pairs.jsonl")
        data = PreferenceDataModule(source, tokenizer=make_tokenizer(), batch_size=2)
        data.prepare_data()
        data.setup("fit")
        assert sorted(i for b in data.train_dataloader() for i in b["index"].tolist()) == [
            *range(6)
        ]
        assert "memory://b/pairs.jsonl: 6 of 6 rows used" in data.reports["train"].brief()


def test_the_revision_reaches_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*args: Any, **options: Any) -> list[Any]:
        asked.append((args, options))
        return []

    monkeypatch.setattr("datasets.load_dataset", load)
    HubSource("org/name", config="en", split="test", revision="0f1e2d").load()
    assert asked == [(("org/name", "en"), {"split": "test", "revision": "0f1e2d"})]
