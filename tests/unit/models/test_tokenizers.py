import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import PromptDataModule, RowsSource
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.rollout import NativeEngine, RolloutRequest, Sampling
from lit_rlhf.testing import make_tokenizer
from lit_rlhf.tokenizers import (
    end_of_turn_id,
    load_tokenizer,
    pad_token_id,
    tokenizer_fingerprint,
)
from lit_rlhf.types import Prompts


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


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


def chatml(special: bool = True):
    tokenizer = make_tokenizer()
    tokens = ["<|im_start|>", "<|im_end|>"]
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.chat_template = CHATML
    return tokenizer


def test_end_of_turn_is_what_the_template_puts_behind_an_answer():
    tokenizer = chatml()
    assert end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_of_turn_id(make_tokenizer()) == make_tokenizer().eos_token_id
    assert end_of_turn_id(chatml(special=False)) is None  # plain text, of several tokens
    assert end_of_turn_id(changed(chat_template=None)) is None
    assert end_of_turn_id(changed(chat_template="{{ raise_exception('no') }}")) is None


def test_rollouts_end_at_eos_and_at_the_end_of_turn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    tokenizer = chatml()
    tokenizer.save_pretrained(tmp_path)
    config = {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    backbone = Backbone.load(ModelSpec(config=config, tokenizer=str(tmp_path)))
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert set(backbone.eos_token_ids) == {tokenizer.eos_token_id, turn}
    assert "<|im_end|>" in caplog.text
    ids = torch.tensor([[7, 8, 9]])
    prompts, sampling = Prompts(ids, ids > 0), Sampling(max_new_tokens=32)
    out = NativeEngine().generate(
        backbone, RolloutRequest(prompts, sampling, torch.arange(256), num_samples=256)
    )
    last = out.tokens.gather(1, out.mask.sum(-1, keepdim=True) - 1)[:, 0]
    assert set(last[out.finished].tolist()) == {tokenizer.eos_token_id, turn}


@pytest.mark.parametrize("place", ["tokenizer_config.json", "config.json"])
def test_a_repositorys_code_never_runs_without_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
        "from transformers import PreTrainedTokenizerFast\nclass Mine(PreTrainedTokenizerFast): ...\n"
    )
    options = json.loads((tmp_path / "tokenizer_config.json").read_text())
    file = tmp_path / place
    found = options if place == "tokenizer_config.json" else {"model_type": "unheard_of"}
    found["auto_map"] = {"AutoTokenizer": [None, "mine.Mine"], "AutoConfig": "mine.Mine"}
    file.write_text(json.dumps({**found, "tokenizer_class": "Mine"}))

    def asked(*_: object) -> str:
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr("builtins.input", asked)
    for load in (
        lambda: load_tokenizer(str(tmp_path)),
        lambda: PromptDataModule(RowsSource([{"prompt": "a"}]), tokenizer=str(tmp_path)).tokenizer,
    ):
        if place == "config.json":  # tokenizer_config.json says enough by itself
            (tmp_path / "tokenizer_config.json").unlink(missing_ok=True)
        said = "trust_remote_code: true" if place.startswith("tokenizer") else "Can't load"
        with pytest.raises(ConfigurationError, match=said):
            load()
    assert not list(tmp_path.rglob("ran"))
