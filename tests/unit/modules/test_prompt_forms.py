"""Models that have learned of prompts written in one way warn of prompts written in another, before work starts."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lit_rlhf.cli import main
from lit_rlhf.cli.unfinished import as_learned
from lit_rlhf.data import (
    AsChat,
    AsTranscript,
    Demonstration,
    DemonstrationDataModule,
    ExplicitPrompt,
    FileSource,
    Format,
    PreferenceDataModule,
    PromptDataModule,
    PromptOnly,
    RowsSource,
)
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import GRPOPolicyModule, RewardModelModule, SupervisedModule
from lit_rlhf.prompt_form import PromptForm
from lit_rlhf.rewards import ModelReward, WeightedSum
from lit_rlhf.rollout import Sampling
from lit_rlhf.testing import make_tokenizer, write_jsonl, write_tiny_model
from tests.unit.modules.policies import make_trainer
from tests.walks import walk

QUESTIONS = ["How was the film?", "What of the hotel?", "Tell me of the food.", "And you"]
PAIRS = [{"prompt": q, "chosen": " Good.", "rejected": " Bad, so bad."} for q in QUESTIONS]
WRITTEN: dict[str, tuple[Format, Format]] = {
    "text": (ExplicitPrompt(), PromptOnly()),
    "chat": (AsChat(ExplicitPrompt()), AsChat(PromptOnly())),
    "kind": (AsChat(ExplicitPrompt(), system="Be kind."), AsChat(PromptOnly(), system="Be kind.")),
    "rude": (AsChat(ExplicitPrompt(), system="Be rude."), AsChat(PromptOnly(), system="Be rude.")),
    "transcript": (AsTranscript(ExplicitPrompt()), AsTranscript(PromptOnly())),
}
RENDERED = {
    "text": "'{prompt}'",
    "chat": "'<|user|>{prompt}<|assistant|>'",
    "kind": "'<|system|>Be kind.<|user|>{prompt}<|assistant|>'",
    "rude": "'<|system|>Be rude.<|user|>{prompt}<|assistant|>'",
    "transcript": r"'\n\nHuman: {prompt}\n\nAssistant:'",
}
SPEC: dict[str, Any] = {"sampling": Sampling(max_new_tokens=2), "num_samples": 2}


def train_reward(model: Path, written: str, directory: Path) -> tuple[Path, Path]:
    """An export and a checkpoint."""
    data = PreferenceDataModule(
        RowsSource(PAIRS), tokenizer=str(model), format=WRITTEN[written][0], batch_size=2
    )
    trainer = make_trainer(limit_train_batches=1)
    module = RewardModelModule(ModelSpec(name=str(model)))
    trainer.fit(module, datamodule=data)
    module.export(directory / "export")
    trainer.save_checkpoint(directory / "reward.ckpt", weights_only=False)
    return directory / "export", directory / "reward.ckpt"


@pytest.fixture(scope="module")
def rewards(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path]]:
    root = tmp_path_factory.mktemp("rewards")
    return {written: train_reward(tiny_model_dir, written, root / written) for written in WRITTEN}


def said_of(reward: ModelReward | WeightedSum, model: Path, format_: Format, **rows: Any) -> str:
    """What a policy's training warns of; no sample is drawn."""
    source = RowsSource(rows.get("rows", [{"prompt": q} for q in QUESTIONS]))
    data = PromptDataModule(source, tokenizer=str(model), format=format_, batch_size=2)
    module = GRPOPolicyModule(ModelSpec(name=str(model)), reward, **SPEC)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(limit_train_batches=0).fit(module, datamodule=data)
    return " ".join(str(w.message) for w in caught if "has learned of" in str(w.message))


@pytest.mark.parametrize("learned", WRITTEN)
@pytest.mark.parametrize("given", walk(WRITTEN, "kind"))
def test_both_renderings_are_shown_where_they_differ(
    rewards: dict[str, tuple[Path, Path]], tiny_model_dir: Path, learned: str, given: str
) -> None:
    export, checkpoint = rewards[learned]
    for path in (export, checkpoint):
        said = said_of(ModelReward(str(path)), tiny_model_dir, WRITTEN[given][1])
        if learned == given:
            assert not said
            continue
        assert str(path) in said
        assert f"learned of prompts written as {RENDERED[learned]}" in said
        assert f"those here are written as {RENDERED[given]}" in said
    if learned in ("chat", "kind", "rude") and given in ("text", "transcript"):
        assert "AsChat" in said
    if learned == "kind" and given != "kind":
        assert "system: 'Be kind.'" in said
    if learned in ("text", "transcript") and given == "chat":
        assert "AsTranscript" in said


def test_a_reward_within_another_is_asked(
    rewards: dict[str, tuple[Path, Path]], tiny_model_dir: Path
) -> None:
    reward = WeightedSum({"a": ModelReward(str(rewards["chat"][0]))})
    assert RENDERED["chat"] in said_of(reward, tiny_model_dir, PromptOnly())


def test_another_template(rewards: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    same, other = make_tokenizer(), make_tokenizer(specials_last=True)
    same.chat_template = other.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model = write_tiny_model(tmp_path / "other", tokenizer=other)
    reward = ModelReward(str(rewards["chat"][0]), conversation_column="prompt")
    format_ = AsChat(PromptOnly(columns=["prompt"]))
    assert not said_of(reward, model, format_)  # it renders them by its own template
    reward = ModelReward(str(rewards["text"][0]), conversation_column="prompt")
    assert RENDERED["chat"] in said_of(reward, model, format_)
    model = write_tiny_model(tmp_path / "same", tokenizer=same)
    said = said_of(ModelReward(str(rewards["chat"][0])), model, format_)
    assert "'[user] {prompt}[assistant]'" in said
    assert "chat template that it was trained with" in said


def test_chats_that_were_rendered_before_are_chats(
    rewards: dict[str, tuple[Path, Path]], tiny_model_dir: Path
) -> None:
    rows = [{"prompt": f"<|user|>{q}<|assistant|>"} for q in QUESTIONS]
    assert not said_of(
        ModelReward(str(rewards["chat"][0])), tiny_model_dir, PromptOnly(), rows=rows
    )
    assert said_of(ModelReward(str(rewards["text"][0])), tiny_model_dir, PromptOnly(), rows=rows)


def test_text_that_begins_or_ends_alike_by_chance_is_no_other_form() -> None:
    forms = [
        PromptForm.of_texts(texts)
        for texts in (
            ["Say a word.", "Say a thing."],
            ["What is it?", "What was it?"],
            ["one"],
            ["x", "y"],
        )
    ]
    assert not any(a.differs_from(b) for a in forms for b in forms)
    framed = PromptForm.of_texts(["Q: a?\nA:", "Q: b?\nA:"])
    other = PromptForm.of_texts(["Question: a.\nA:", "Question: b.\nA:"])
    assert all(framed.differs_from(form) for form in (forms[0], forms[1], forms[3], other))
    assert not framed.differs_from(PromptForm.of_texts(["Q: so.\nA:", "Q: no.\nA:"]))


def test_rows_with_several_system_turns_are_held_to_none() -> None:
    tokenizer = make_tokenizer()
    several = PromptForm.of_chats(tokenizer, ["Be kind.", ""])
    one = PromptForm.of_chats(tokenizer, ["Be rude."])
    assert not several.differs_from(one)
    assert not one.differs_from(several)


def fine_tuned(base: Path, path: Path, system: str | None = None) -> list[dict[str, str]]:
    """Export a policy that has seen chats; the rows that it saw."""
    rows = [{"prompt": q, "completion": " Good."} for q in QUESTIONS]
    form = AsChat(Demonstration(), system=system)
    data = DemonstrationDataModule(RowsSource(rows), tokenizer=str(base), format=form, batch_size=2)
    module = SupervisedModule(ModelSpec(name=str(base)))
    make_trainer(limit_train_batches=1).fit(module, datamodule=data)
    module.export(path)
    return rows


def test_a_fine_tuned_model_warns_too(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = fine_tuned(tiny_model_dir, tmp_path / "sft")
    plain = DemonstrationDataModule(
        RowsSource(rows), tokenizer=str(tiny_model_dir), format=Demonstration(), batch_size=2
    )
    with pytest.warns(
        UserWarning, match=r"The model .*sft' has learned of prompts written as '<\|user"
    ):
        make_trainer(limit_train_batches=0).fit(
            SupervisedModule(ModelSpec(name=str(tmp_path / "sft"))), datamodule=plain
        )


def test_generate_warns_of_a_reward_that_has_learned_of_other_prompts(
    rewards: dict[str, tuple[Path, Path]],
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": q} for q in QUESTIONS])
    reward = ["--reward=ModelReward", f"--reward.path={rewards['chat'][0]}"]
    words = [f"--model={tiny_model_dir}", f"--prompts={rows}", "--sampling.max_new_tokens=2"]
    with pytest.warns(UserWarning, match=r"written as '<\|user\|>\{prompt\}"):
        main(["generate", *words, *reward])
    assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 4


@pytest.mark.filterwarnings("error:.*has learned of prompts")
@pytest.mark.parametrize("command", ["score", "generate"])
def test_commands_write_prompts_as_the_model_has_learned_them(
    rewards: dict[str, tuple[Path, Path]],
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    """Text, messages and rendered text of the same chats give the same answers; `--layout text` others."""
    turns = [[{"role": "user", "content": q}] for q in QUESTIONS]
    tokenizer = make_tokenizer()
    rendered = [
        tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True)
        for each in turns
    ]
    model = rewards["chat"][0]
    if command == "generate":
        model = tmp_path / "policy"
        fine_tuned(tiny_model_dir, model)

    def answers(prompts: Sequence[Any], *words: str) -> list[Any]:
        path = write_jsonl(
            tmp_path / "rows.jsonl", [{"prompt": p, "completion": " a"} for p in prompts]
        )
        name = {"score": "--data", "generate": "--prompts"}[command]
        sampling = ["--sampling.max_new_tokens=8"] if command == "generate" else []
        main([command, f"--model={model}", f"{name}={path}", *sampling, *words])
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [row["score" if command == "score" else "response"] for row in found]

    asked = answers(QUESTIONS)
    assert answers(turns) == asked
    assert answers(rendered) == asked
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert answers(QUESTIONS, "--layout=text") != asked


def test_messages_written_as_text_stay_as_they_are() -> None:
    """No system turn comes in front of them, as of other messages."""
    learned = PromptForm.of_chats(make_tokenizer(), ["Be kind."])
    backbone: Any = SimpleNamespace(prompts=learned)
    turns = [[{"role": "user", "content": q}] for q in QUESTIONS]
    for prompts in (turns, [json.dumps(each) for each in turns], [str(each) for each in turns]):
        assert as_learned(Demonstration(), "auto", backbone, prompts) == Demonstration()
    assert as_learned(Demonstration(), "auto", backbone, QUESTIONS) != Demonstration()


def test_what_is_kept_to_train_on_has_the_prompts_that_were_asked(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    fine_tuned(tiny_model_dir, tmp_path / "policy", "Be kind.")
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": q} for q in QUESTIONS])
    words = [f"--model={tmp_path / 'policy'}", f"--prompts={prompts}", "--keep=pairs"]
    words += ["--reward=LengthReward", "--num_samples=24", "--sampling.max_new_tokens=40"]
    main(["generate", *words, f"--output={tmp_path / 'pairs.jsonl'}"])
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert pairs
    system = {"role": "system", "content": "Be kind."}
    assert all(pair["prompt"][0] == system for pair in pairs)
    trained = PreferenceDataModule(
        FileSource(str(tmp_path / "pairs.jsonl")), tokenizer=str(tiny_model_dir), batch_size=2
    )
    trained.prepare_data()
    trained.setup("fit")
    form = trained.prompt_form()
    assert form is not None
    assert not form.differs_from(PromptForm.of_chats(make_tokenizer(), ["Be kind."]))
