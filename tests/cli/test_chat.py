"""Talking with a policy: what it is given, what is shown and when, what a pipe and a terminal see."""

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_rlhf.cli import main
from lit_rlhf.cli.conversation import Conversation, Speaker
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.models import Backbone, ModelSpec, export_reward, load_policy
from lit_rlhf.prompt_form import PromptForm
from lit_rlhf.rewards import LengthReward, ModelReward, Reward
from lit_rlhf.rollout import HFEngine, NativeEngine, Sampling
from lit_rlhf.testing import write_tiny_model
from lit_rlhf.types import Completions, Scores
from tests import warm

ROOT = Path(__file__).parents[2]
SHORT = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("policy") / "model")


@pytest.fixture
def backbone(policy: Path) -> Backbone:
    return load_policy(str(policy))


def ignore(_: str) -> None:
    """Shows nothing."""


def test_every_turn_is_given_through_the_template(backbone: Backbone) -> None:
    talk = Conversation(backbone, system="be brief")
    speaker = Speaker(backbone, talk, SHORT)
    first = speaker.answer("one?", ignore)
    speaker.answer("two?", ignore)
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "two?"},
    ]
    talk.turns.pop()
    template = backbone.tokenizer.apply_chat_template
    wanted = template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert talk.encoded(None) == (wanted, 0)


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        (
            PromptForm("text", "Human: ", "\nAssistant:"),
            "Human: a\nAssistant:xHuman: b\nAssistant:",
        ),
        (PromptForm("text", "", None), "b"),
        (PromptForm("text", "", "\nTL;DR:"), "b\nTL;DR:"),
    ],
)
def test_a_policy_of_plain_text_sees_its_own_markers(
    backbone: Backbone, form: PromptForm, wanted: str
) -> None:
    backbone.prompts = form
    talk = Conversation(backbone)
    turns = (("user", "a"), ("assistant", "x"), ("user", "b"))
    talk.turns += [{"role": role, "content": text} for role, text in turns]
    assert talk.prompt() == wanted
    with pytest.raises(ConfigurationError, match=r"--system 'be brief': .* plain text"):
        Conversation(backbone, "be brief")


def test_the_system_turn_of_training_is_the_default(backbone: Backbone) -> None:
    backbone.prompts = PromptForm.of_chats(backbone.tokenizer, ["be kind"])
    assert Conversation(backbone).prompt() == [{"role": "system", "content": "be kind"}]
    assert Conversation(backbone, "").prompt() == []


def test_what_is_shown_piece_by_piece_is_the_answer(backbone: Backbone) -> None:
    """Of a model that writes random bytes: characters of several are shown when they are whole."""
    backbone.tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    for seed in range(8):
        pieces: list[str] = []
        speaker = Speaker(backbone, Conversation(backbone), Sampling(40), seed=seed)
        said = speaker.answer("who?", pieces.append)
        assert "".join(pieces) == said.text
        assert len([piece for piece in pieces if piece]) > 1
    assert not speaker.engine.listeners


def test_other_engines_show_the_answer_at_its_end(backbone: Backbone) -> None:
    pieces: list[str] = []
    greedy = Sampling(max_new_tokens=10, temperature=0)
    whole = Speaker(backbone, Conversation(backbone), greedy, HFEngine()).answer("a", pieces.append)
    assert pieces == [whole.text]
    native = Speaker(backbone, Conversation(backbone), greedy, NativeEngine())
    assert native.answer("a", ignore).text == whole.text


def test_again_that_fails_leaves_the_conversation(backbone: Backbone) -> None:
    speaker = Speaker(backbone, Conversation(backbone), SHORT)
    speaker.answer("one?", ignore)
    before = list(speaker.conversation.turns)

    def broken(_: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        speaker.again(broken)
    assert speaker.conversation.turns == before


def test_again_asks_the_same_and_answers_otherwise(backbone: Backbone) -> None:
    speaker = Speaker(backbone, Conversation(backbone), SHORT)
    with pytest.raises(ConfigurationError, match="Nothing was said"):
        speaker.again(ignore)
    first = speaker.answer("one?", ignore)
    second = speaker.again(ignore)
    assert first.text != second.text
    assert [t["content"] for t in speaker.conversation.turns] == ["one?", second.text]
    same = Speaker(backbone, Conversation(backbone), SHORT)
    assert same.answer("one?", ignore).text == first.text


def test_the_oldest_exchanges_are_forgotten_where_the_context_ends(backbone: Backbone) -> None:
    talk = Conversation(backbone)
    speaker = Speaker(backbone, talk, SHORT)
    context = backbone.model.config.max_position_embeddings
    forgotten = [speaker.answer(f"{i} {'x' * 60}", ignore).forgotten for i in range(context // 30)]
    assert forgotten[0] == 0 and sum(forgotten) > 0
    ids, _ = talk.encoded(None)
    assert len(ids) <= context
    before = list(talk.turns)
    with pytest.raises(ConfigurationError, match="positions"):
        speaker.answer("y" * 2 * context, ignore)
    assert [turn for turn in before if turn in talk.turns] == talk.turns  # the question isn't kept


def test_ctrl_c_breaks_an_answer_off_and_keeps_what_was_said(backbone: Backbone) -> None:
    pieces: list[str] = []

    def show(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 5:
            raise KeyboardInterrupt

    speaker = Speaker(backbone, Conversation(backbone), Sampling(200), reward=LengthReward())
    said = speaker.answer("who?", show)
    assert not said.finished and said.scores is None
    assert "".join(pieces).startswith(said.text)
    assert len(speaker.conversation.turns) == 2


class Broken(Reward):
    """Scores nothing."""

    def score(self, completions: Completions) -> Scores:
        raise DataError("no score")


def test_an_answer_that_fails_leaves_no_turn(backbone: Backbone) -> None:
    speaker = Speaker(backbone, Conversation(backbone), SHORT, reward=Broken())
    with pytest.raises(DataError):
        speaker.answer("who?", ignore)
    assert speaker.conversation.turns == []


def pipe(words: list[str], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    main(["chat", *words, "--sampling.max_new_tokens", "12", "--device", "cpu"])


def test_a_pipe_gets_answers_and_nothing_else(
    policy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(policy), "--reward", "LengthReward", "--dtype", "float32"]
    pipe(words, "a\n\n/reset\nb\n/quit\nc\n", monkeypatch)
    said = capsys.readouterr()
    assert len(re.findall(r"^\[reward \d+\]$", said.err, re.MULTILINE)) == 2
    speaker = Speaker(load_policy(str(policy)), Conversation(load_policy(str(policy))), SHORT)
    first = speaker.answer("a", ignore).text
    speaker.conversation.turns.clear()
    assert said.out == f"{first}\n{speaker.answer('b', ignore).text}\n"


def test_the_score_is_what_transformers_says_of_the_same_tokens(
    policy: Path, backbone: Backbone, tmp_path: Path
) -> None:
    judge = Backbone.load(ModelSpec(name=str(policy)), lm_head=False)
    judge.add_head("reward")
    export_reward(judge, tmp_path / "reward", merge=True, role=None)
    talk, tokens = Conversation(backbone), []
    speaker = Speaker(backbone, talk, SHORT, reward=ModelReward(str(tmp_path / "reward")))
    speaker.engine.listeners.append(lambda rows, found: tokens.extend(found.tolist()))
    speaker.answer("one?", ignore)
    tokens.clear()
    said = speaker.answer("two?", ignore)
    talk.turns.pop()
    ids = torch.tensor([talk.encoded(None)[0] + tokens])
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    assert said.scores is not None
    assert float(said.scores.total[0]) == pytest.approx(
        float(classifier(ids).logits.detach()), rel=1e-4
    )


def test_an_unknown_command_and_a_reward_model_are_refused(
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        pipe([str(policy)], "/foo\n", monkeypatch)
    assert "no command '/foo'" in capsys.readouterr().err
    (tmp_path / "lit_rlhf.json").write_text('{"kind": "reward"}')
    with pytest.raises(SystemExit):
        pipe([str(tmp_path)], "a\n", monkeypatch)
    assert "is a reward model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_terminal_has_a_prompt_goes_on_after_errors_and_shows_no_control_characters(
    policy: Path,
) -> None:
    primary, secondary = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    command = [warm.python(), "-m", "lit_rlhf", "chat", str(policy), "--device", "cpu"]
    child = subprocess.Popen(
        command, stdin=secondary, stdout=secondary, stderr=secondary, env=environment
    )
    os.close(secondary)
    seen = b""

    def wait_for(found: Callable[[bytes], bool]) -> None:
        nonlocal seen
        end = time.monotonic() + 120
        while not found(seen):
            assert time.monotonic() < end, seen
            if select.select([primary], [], [], 1)[0]:
                seen += os.read(primary, 4096)

    for count, line in enumerate((b"who?", b"/foo", b"/quit"), start=1):
        wait_for(lambda text, count=count: text.count(b"\n> ") == count)
        os.write(primary, line + b"\n")
    assert child.wait(60) == 0
    os.close(primary)
    assert b"no command '/foo'" in seen and b"Traceback" not in seen
    assert not re.search(rb"[\x00-\x06\x0b\x0c\x0e-\x1a\x7f]", seen)
