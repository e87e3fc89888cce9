"""The shipped tiny models, tokenizers and data."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rlhf.testing import (
    make_tiny_model,
    make_tokenizer,
    make_word_tokenizer,
    tiny,
    tiny_config,
    tiny_demonstrations,
    tiny_preferences,
    tiny_prompts,
    write_jsonl,
)
from lit_rlhf.testing.preferences import KIND, UNKIND


@pytest.mark.parametrize(
    "text",
    ["the other theme", "naïve 🙂\n\t x", "  two  spaces ", "it 's , don't .", "\x00\x7f", ""],
)
@pytest.mark.parametrize("options", [{}, {"specials_last": True}, {"merges": ()}])
def test_any_text_comes_back(text: str, options: dict[str, object]) -> None:
    tokenizer = make_tokenizer(**options)  # type: ignore[arg-type]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_merges_shorten_text() -> None:
    assert len(make_tokenizer()("the the")["input_ids"]) == 2
    assert len(make_tokenizer(merges=())("the the")["input_ids"]) == 7


def test_special_tokens() -> None:
    tokenizer = make_tokenizer()
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    assert tokenizer("a<eos>")["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]
    with_bos = make_tokenizer(bos=True)
    assert with_bos("a")["input_ids"] == [with_bos.bos_token_id, *tokenizer("a")["input_ids"]]


def test_chat_template() -> None:
    tokenizer = make_tokenizer()
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": " q\n"},
        {"role": "assistant", "content": "a "},
        {"role": "user", "content": "again"},
    ]
    text = "<|system|>s<|user|> q\n<|assistant|>a <eos><|user|>again"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == text
    assert (
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        == text + "<|assistant|>"
    )
    encoded = tokenizer.apply_chat_template(
        chat, return_dict=True, return_assistant_tokens_mask=True
    )
    learned = [
        i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask
    ]
    assert tokenizer.decode(learned) == "a <eos>"


def test_word_tokenizer() -> None:
    tokenizer = make_word_tokenizer(["good", "film", "good"])
    ids = tokenizer("good film <eos>")["input_ids"]
    assert len(ids) == 3
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "good film"
    assert tokenizer("nonsense")["input_ids"] == [tokenizer.unk_token_id]


def test_model_depends_on_its_seed_alone() -> None:
    tokenizer = make_tokenizer()
    state = torch.get_rng_state()
    first, again, other = (make_tiny_model(tokenizer, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_config_overrides_win() -> None:
    config = tiny_config(100, hidden_size=16, num_hidden_layers=1)
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (100, 16, 1)


@pytest.mark.walk
def test_command_writes_what_transformers_loads(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "data"
    command = [
        sys.executable,
        "-W",
        "error::RuntimeWarning",
        "-m",
        "lit_rlhf.testing.tiny",
        str(root),
    ]
    subprocess.run(command, check=True, capture_output=True)
    target = root / "tiny-model"
    assert {path.stem for path in root.glob("*.jsonl")} == {
        "demonstrations",
        "preferences",
        "prompts",
        "rankings",
    }
    tokenizer = AutoTokenizer.from_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(target)
    expected = make_tiny_model(make_tokenizer()).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert tokenizer.chat_template == make_tokenizer().chat_template
    assert tokenizer("the end<eos>")["input_ids"] == make_tokenizer()("the end<eos>")["input_ids"]


def test_rows_of_ones_own_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.main([str(tmp_path)])
    tiny.main([str(tmp_path)])  # the same again
    assert str(tmp_path / "preferences.jsonl") in capsys.readouterr().out
    (tmp_path / "preferences.jsonl").write_text("mine\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match=r"preferences\.jsonl is there .* other rows"):
        tiny.main([str(tmp_path)])
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("make", [tiny_prompts, tiny_preferences, tiny_demonstrations])
def test_rows_are_a_function_of_seed_and_index(make: type[list[dict[str, str]]]) -> None:
    assert make(50)[:10] == make(10)  # type: ignore[call-arg]
    assert make(10, seed=1) != make(10)  # type: ignore[call-arg]
    assert len({row["prompt"] for row in make(50)}) == 50  # type: ignore[call-arg]


def test_preferences_follow_the_rule() -> None:
    for row in tiny_preferences(50):
        assert row["chosen"].split()[-1] in KIND
        assert row["rejected"].split()[-1] in UNKIND
        assert row["chosen"].split()[:-1] == row["rejected"].split()[:-1]


def test_rows_go_to_a_file(tmp_path: Path) -> None:
    rows = tiny_preferences(3)
    path = write_jsonl(tmp_path / "new" / "pairs.jsonl", rows)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == rows
