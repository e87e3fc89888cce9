from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.testing import make_tokenizer
from lit_rlhf.tokenizers import load_tokenizer, pad_token_id, tokenizer_fingerprint


def test_fingerprint_survives_saving_and_use(tmp_path: Path):
    tokenizer = make_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.padding_side == "right"
    assert tokenizer_fingerprint(loaded) == before
    assert tokenizer_fingerprint(make_tokenizer()) == before


@pytest.mark.parametrize(
    "other",
    [
        lambda: make_tokenizer(merges=("i n",)),
        lambda: make_tokenizer(specials_last=True),
        lambda: make_tokenizer(bos=True),
        lambda: changed(chat_template="{{ messages }}"),
        lambda: changed(eos_token="<pad>"),
    ],
    ids=["merges", "ids", "bos", "template", "eos"],
)
def test_fingerprint_tells_tokenizers_apart(other: Callable[[], Any]):
    assert tokenizer_fingerprint(other()) != tokenizer_fingerprint(make_tokenizer())


def changed(**attributes: Any):
    tokenizer = make_tokenizer()
    for name, value in attributes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_pad_id_falls_back_to_eos_then_to_0():
    tokenizer = make_tokenizer()
    assert pad_token_id(tokenizer) == tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert pad_token_id(tokenizer) == tokenizer.eos_token_id
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    )
    assert pad_token_id(bare) == 0


def test_what_is_no_tokenizer_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(
        ConfigurationError, match=r"The directory holds \['notes.txt'\]. tokenizer.json is missing"
    ):
        load_tokenizer(str(tmp_path))
