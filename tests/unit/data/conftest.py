"""A cache and a tokenizer for the tests of lit_rlhf.data."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from lit_rlhf.testing import make_tokenizer


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache of tokenized rows, empty at the start of each test."""
    monkeypatch.setenv("LIT_RLHF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few merges; `<|user|>hi<|assistant|>` is its generation prompt."""
    return make_tokenizer()
