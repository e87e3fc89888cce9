import errno
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import FileSource, PreferenceDataModule, RowsSource
from lit_rlhf.data.rows import TokenCache, cache_root
from lit_rlhf.errors import DataError
from lit_rlhf.testing import tiny_preferences, write_jsonl

ROWS = [
    {
        "row": n,
        "prompt_key": n,
        "length": n + 1,
        "prompt_ids": [n],
        "completion_ids": [[n, 1], [2]],
        "extras": "{}",
    }
    for n in range(5)
]


def build(cache: TokenCache, key: str = "key", rows: Any = ROWS) -> list[dict[str, Any]]:
    return cache.get_or_build(key, rows, lambda: {"n": len(ROWS)}).open().to_list()


def refuse() -> Iterator[Mapping[str, Any]]:
    pytest.fail("built again")
    yield {}


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    return TokenCache(tmp_path / "root")


def test_what_was_built_is_found(cache: TokenCache) -> None:
    assert cache.find("key", verify=True) is None
    assert build(cache) == ROWS
    assert build(cache, rows=refuse()) == ROWS
    found = cache.find("key", verify=True)
    assert found is not None
    assert found.meta == {"n": 5}
    assert [path.name for path in cache.root.iterdir()] == ["key"]


def truncate(path: Path) -> None:
    file = next(path.glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-7])


def flip(path: Path) -> None:
    file = next(path.glob("*.arrow"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "truncated": truncate,
    "flipped bit": flip,
    "no marker": lambda path: (path / "complete.json").unlink(),
    "torn marker": lambda path: (path / "complete.json").write_text('{"files": {'),
    "no rows": lambda path: next(path.glob("*.arrow")).unlink(),
    "another marker": lambda path: (path / "complete.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_built_anew(cache: TokenCache, damage: str) -> None:
    build(cache)
    DAMAGES[damage](cache.root / "key")
    assert build(cache) == ROWS
    assert build(cache, rows=refuse()) == ROWS
    assert [path.name for path in cache.root.iterdir()] == ["key"]


def test_a_build_that_fails_leaves_nothing(cache: TokenCache) -> None:
    def broken() -> Iterator[Mapping[str, Any]]:
        yield ROWS[0]
        raise DataError("row 2")

    with pytest.raises(DataError, match="row 2"):
        build(cache, rows=broken())
    assert list(cache.root.iterdir()) == []


def test_an_entry_comes_into_its_place_by_a_rename(
    cache: TokenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(
        KeyboardInterrupt
    ):  # all is written, and still nobody can take it for the entry
        build(cache)
    assert list(cache.root.iterdir()) == []


def test_sizes_are_compared_even_where_checksums_are_not(cache: TokenCache) -> None:
    build(cache)
    flip(cache.root / "key")
    assert cache.find("key", verify=False) is not None
    truncate(cache.root / "key")
    assert cache.find("key", verify=False) is None


def test_what_a_killed_build_left_is_never_taken_and_goes_after_a_day(cache: TokenCache) -> None:
    build(cache)
    (cache.root / "key").rename(
        cache.root / ".lit_rlhf-building-x"
    )  # complete, but not yet in its place
    other = cache.root / ".somebody-elses"
    other.mkdir()
    assert cache.find("key", verify=True) is None
    old = time.time() - 25 * 3600
    for path in (other, cache.root / ".lit_rlhf-building-x"):
        os.utime(path, (old, old))
    build(cache)
    assert sorted(path.name for path in cache.root.iterdir()) == [".somebody-elses", "key"]


def test_the_slower_of_two_builders_takes_the_others_entry(cache: TokenCache) -> None:
    def slow() -> Iterator[Mapping[str, Any]]:
        yield from ROWS[:2]
        build(TokenCache(cache.root))  # another process finishes first
        yield from ROWS[2:]

    assert build(cache, rows=slow()) == ROWS
    assert [path.name for path in cache.root.iterdir()] == ["key"]


def test_a_full_disk_says_so_and_harms_nothing(
    cache: TokenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(cache, "old")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lit_rlhf.data.rows._write_marker", full)
    with pytest.raises(
        DataError, match=r"Can't write the cache .*root: .*No space left.*cache_dir.*LIT_RLHF_CACHE"
    ):
        build(cache, "new")
    assert [path.name for path in cache.root.iterdir()] == ["old"]
    assert build(cache, "old", rows=refuse()) == ROWS


def test_the_root_is_the_option_then_the_variable_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LIT_RLHF_CACHE", "/variable")
    assert cache_root("/option") == Path("/option")
    assert cache_root(None) == Path("/variable")
    monkeypatch.delenv("LIT_RLHF_CACHE")
    assert cache_root(None) == tmp_path / ".cache" / "lit_rlhf"


def test_a_cache_directory_can_be_given(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    module = PreferenceDataModule(
        RowsSource(tiny_preferences(4)), tokenizer=tokenizer, cache_dir=str(tmp_path / "given")
    )
    module.prepare_data()
    assert len(list((tmp_path / "given").iterdir())) == 1


def test_what_is_said_of_cached_rows_names_the_file_at_hand(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [*tiny_preferences(4), {"prompt": "?", "chosen": "", "rejected": "no"}]
    said = []
    for name in ("one", "two"):
        path = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        source = FileSource(str(path))
        data = PreferenceDataModule(source, tokenizer=tokenizer, cache_dir=str(tmp_path / "cache"))
        data.prepare_data()
        data.setup("fit")
        said.append(data.reports["train"].summary())
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert "one.jsonl, row 5" in said[0]
    assert said[1] == said[0].replace("one.jsonl", "two.jsonl")
