"""The net under all tests: no network, an environment that is put back, shapes checked at run time."""

import os
import socket
import tomllib
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rlhf.models import Backbone, ModelSpec, backbone
from tests import once


def test_remote_connections_are_refused() -> None:
    with (
        socket.socket() as client,
        pytest.raises(RuntimeError, match=r"tests run offline.*192\.0\.2\.1"),
    ):
        client.connect(("192.0.2.1", 80))
    with pytest.raises(RuntimeError, match=r"tests run offline.*example\.org"):
        socket.getaddrinfo("example.org", 80)


def test_loopback_passes() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()),
    ):
        pass


@pytest.mark.parametrize("attempt", [1, 2])
def test_environment_is_put_back(attempt: int) -> None:
    assert "LIT_RLHF_LEAK" not in os.environ, f"left over in attempt {attempt}"
    os.environ["LIT_RLHF_LEAK"] = "1"


def test_tests_are_offline_and_single_threaded() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["OMP_NUM_THREADS"]


def test_shapes_are_checked_at_run_time() -> None:
    from lit_rlhf.functional.branches import branch_layout

    with pytest.raises(TypeCheckError):
        branch_layout(torch.zeros(3, dtype=torch.int64), 1)


def test_tiny_models_load(tiny_model_dir: Path, other_tokenizer_model_dir: Path) -> None:
    first, second = (
        AutoTokenizer.from_pretrained(path) for path in (tiny_model_dir, other_tokenizer_model_dir)
    )
    text = "the rain in the inn"
    assert (
        first.decode(first(text)["input_ids"]) == second.decode(second(text)["input_ids"]) == text
    )
    theirs = second.get_vocab()
    assert all(theirs.get(token) != index for token, index in first.get_vocab().items())
    for path, tokenizer in ((tiny_model_dir, first), (other_tokenizer_model_dir, second)):
        model = AutoModelForCausalLM.from_pretrained(path)
        assert model.config.vocab_size == len(tokenizer)
        assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_filters_of_warnings_import_no_library() -> None:
    """Which the process that deals tests out would do before any runs: ten seconds of a slow CPU."""
    options = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    filters = options["tool"]["pytest"]["ini_options"]["filterwarnings"]
    assert "error" in filters
    assert not [each for each in filters if len(each.replace("\\:", "").split(":")) > 2]


def test_models_that_are_alike_are_checked_once(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[type] = []
    monkeypatch.setattr(once, "_passed", set())
    monkeypatch.setattr(backbone, "check_decoder", lambda model, *_: checked.append(type(model)))
    once.use(monkeypatch)
    Backbone.load(ModelSpec(str(tiny_model_dir)))
    alike = Backbone.load(ModelSpec(str(tiny_model_dir)))
    assert len(checked) == 1
    Backbone.load(ModelSpec(str(tiny_model_dir), kernels="plain"))
    assert len(checked) == 2
    with torch.no_grad():
        next(alike.model.parameters())[0, 0] += 1
    Backbone(alike.model, alike.tokenizer, alike.spec)
    assert len(checked) == 3
