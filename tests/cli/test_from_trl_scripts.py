"""TRL scripts as people write them: what is read is what they do, and what isn't is said."""

from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.cli.main import main
from lit_rlhf.rewards.functions import load_function
from tests.cli.test_from_trl import translated

DPO = """
MODEL = "org/model"
TARGETS = ["q_proj", "v_proj"]
{before}


def main():
    lr: float = 2e-6
    config = DPOConfig({options})
    {after}
    DPOTrainer({trainer}, args=config, train_dataset=load_dataset("org/rows-2.5", split="train"),
               peft_config=LoraConfig(r=4, target_modules=TARGETS))


if __name__ == "__main__":
    main()
"""


def script(
    tmp_path: Path, before: str = "", options: str = "", after: str = "", trainer: str = "MODEL"
) -> tuple[str, dict[str, Any]]:
    text = DPO.format(before=before, options=options, after=after, trainer=trainer)
    return translated(tmp_path, text, name="train.py")


def lr(made: dict[str, Any]) -> float:
    return made["model"]["init_args"]["optimizer"]["init_args"]["lr"]


def test_names_of_a_script(tmp_path: Path) -> None:
    written, made = script(tmp_path, options="learning_rate=lr, beta=0.2, **{'max_steps': 7}")
    model = made["model"]["init_args"]
    assert lr(made) == 2e-6
    assert model["backbone"]["name"] == made["data"]["init_args"]["tokenizer"] == "org/model"
    assert model["backbone"]["lora"]["target_modules"] == ["q_proj", "v_proj"]
    assert {"class_path": "StopAfter", "init_args": {"steps": 7}} in made["trainer"]["callbacks"]
    train = made["data"]["init_args"]["train"]
    assert train == {
        "class_path": "HubSource",
        "init_args": {"name": "org/rows-2.5", "split": "train"},
    }
    assert "is no literal" not in written


@pytest.mark.parametrize(
    "before",
    [
        "rate = 1e-3\nrate = 1e-4",
        "for rate in (1e-3, 1e-4):\n    pass",
        "rate = 1e-3\nif MODEL:\n    rate = 1e-4",
    ],
)
def test_a_name_with_several_values_has_none(before: str, tmp_path: Path) -> None:
    written, made = script(tmp_path, before, "learning_rate=rate")
    assert "#   learning_rate: `rate` is no literal" in written
    assert lr(made) == 1e-6  # TRL's default


def test_a_parameter_is_not_what_has_its_name_elsewhere(tmp_path: Path) -> None:
    text = DPO.replace("def main():", "def main(rate):").format(
        before="rate = 1e-3", options="learning_rate=rate", after="", trainer="MODEL"
    )
    written, _ = translated(tmp_path, text, name="train.py")
    assert "#   learning_rate: `rate` is no literal" in written


def test_options_that_are_set_later(tmp_path: Path) -> None:
    after = "config.learning_rate = 3e-5\n    if TARGETS:\n        config.beta = 0.5"
    written, made = script(tmp_path, options="learning_rate=1e-3, beta=0.2", after=after)
    assert lr(made) == 3e-5
    assert "#   beta: `config.beta = 0.5` sets it under a condition" in written


def test_what_a_trainer_is_given_beside(tmp_path: Path) -> None:
    before = (
        'model = AutoModelForCausalLM.from_pretrained("org/a", torch_dtype=torch.bfloat16, foo=1)\n'
        'other = AutoModelForCausalLM.from_pretrained("org/b")\n'
        'tokenizer = AutoTokenizer.from_pretrained("org/c")'
    )
    given = (
        "model=model, ref_model=other, processing_class=tokenizer, callbacks=[stop], max_length=77"
    )
    written, made = script(tmp_path, before, "beta=0.2", trainer=given)
    assert made["model"]["init_args"]["backbone"]["name"] == "org/a"
    assert made["model"]["init_args"]["backbone"]["dtype"] == "bfloat16"
    assert made["data"]["init_args"]["max_prompt_length"] == 77
    for name in (
        "ref_model: org/b",
        "processing_class: org/c",
        "callbacks, of the trainer",
        "from_pretrained, foo",
    ):
        assert f"#   {name}: " in written


def test_a_model_that_is_not_found_is_said(tmp_path: Path) -> None:
    """The recipe's own would be trained, in silence."""
    written, _ = script(tmp_path, trainer="model=build()")
    assert "#   model_name_or_path: None was found" in written
    loads = "[AutoModelForCausalLM.from_pretrained(each) for each in ('a', 'b')]"
    written, _ = script(tmp_path, trainer=f"model={loads}[0]")
    assert "#   model_name_or_path: `each` is no literal" in written
    before = 'a, b = A.from_pretrained("org/a"), A.from_pretrained("org/b")'
    written, _ = script(tmp_path, before, trainer="model=wrapped(a)")
    assert "#   model_name_or_path: It loads several models ('org/a', 'org/b')" in written


def test_a_policy_that_ppo_is_told_by_an_option(tmp_path: Path) -> None:
    text = """
config = PPOConfig(sft_model_path="org/sft", reward_model_path="org/rm")
scorer = AutoModelForSequenceClassification.from_pretrained(config.reward_model_path)
policy = AutoModelForCausalLM.from_pretrained(config.sft_model_path)
PPOTrainer(args=config, model=policy, reward_model=scorer, value_model=scorer, train_dataset=rows)
"""
    written, made = translated(tmp_path, text, name="train.py")
    assert made["model"]["init_args"]["backbone"]["name"] == "org/sft"
    assert made["model"]["init_args"]["reward"]["init_args"]["path"] == "org/rm"
    assert "is no literal" not in written


def test_several_configurations_of_a_kind(tmp_path: Path) -> None:
    after = "if MODEL:\n        config = DPOConfig(beta=0.5)"
    written, _ = script(tmp_path, options="beta=0.2", after=after)
    assert "#   DPOConfig: It makes 2; read was that of line" in written


UNSLOTH = """
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name="unsloth/model", max_seq_length=512, load_in_4bit=True, dtype=None,
)
model = FastLanguageModel.get_peft_model(
    model, r=8, target_modules=["q_proj"], lora_alpha=8, lora_dropout=0, bias="none",
    use_gradient_checkpointing="unsloth",
)
SFTTrainer(
    model=model, tokenizer=tokenizer, train_dataset=load_dataset("json", data_files="a.jsonl"),
    dataset_text_field="text", formatting_func=shape,
    args=SFTConfig(fp16=not is_bfloat16_supported(), bf16=True, load_in_8bit=False, learning_rate=2e-4),
)
"""


def test_a_script_of_unsloth(tmp_path: Path) -> None:
    written, made = translated(tmp_path, UNSLOTH, name="train.py")
    backbone = made["model"]["init_args"]["backbone"]
    assert backbone["name"] == "unsloth/model"
    assert backbone["quantization"] == "nf4"
    assert backbone["lora"]["rank"] == 8
    data = made["data"]["init_args"]
    assert data["format"] == {"class_path": "PlainText", "init_args": {"text": "text"}}
    assert data["max_completion_length"] == 512
    for name in ("fp16", "formatting_func, of the trainer", "use_gradient_checkpointing"):
        assert f"#   {name}: " in written


@pytest.mark.parametrize(
    ("given", "precision"),
    [
        ("bf16: true\nfp16: false", "bf16-mixed"),
        ("fp16: true\nbf16: false", "16-mixed"),
        ("bf16: false", "32-true"),
    ],
)
def test_one_half_precision_leaves_the_other(given: str, precision: str, tmp_path: Path) -> None:
    _, made = translated(tmp_path, given, "--task", "dpo")
    assert made["trainer"]["precision"] == precision


def test_four_bits_that_are_not_eight(tmp_path: Path) -> None:
    _, made = translated(tmp_path, "load_in_4bit: true\nload_in_8bit: false", "--task", "sft")
    assert made["model"]["init_args"]["backbone"]["quantization"] == "nf4"


def test_a_yaml_of_the_command(tmp_path: Path) -> None:
    """TRL's parser takes `1e-5` for a number, and options of accelerate."""
    text = "learning_rate: 1e-5\nbeta: 0.1\naccelerate_config: zero3\nmax_prompt_length: 99"
    written, made = translated(tmp_path, text, "--task", "dpo")
    assert lr(made) == 1e-5
    assert made["data"]["init_args"]["max_prompt_length"] == 99
    assert "#   accelerate_config: Processes are the trainer's" in written


ROWS = """
{rows}
GRPOTrainer("org/model", {rewards}, args=GRPOConfig(reward_weights=[1.0, 2.0]), train_dataset=rows)
"""
LISTED = "reward_funcs"
FUNCTIONS = """
def short(completions, **columns):
    return [-float(len(each)) for each in completions]

scorer = AutoModelForSequenceClassification.from_pretrained("org/scorer")
reward_funcs = [short, scorer]
"""


def test_rewards_by_name(tmp_path: Path) -> None:
    text = ROWS.format(rows=FUNCTIONS, rewards="reward_funcs")
    _, made = translated(tmp_path, text, name="train.py")
    reward = made["model"]["init_args"]["reward"]["init_args"]
    assert reward["weights"] == {"short": 1.0, "scorer": 2.0}
    assert reward["rewards"]["scorer"]["init_args"]["path"] == "org/scorer"
    assert load_function(reward["rewards"]["short"]["init_args"]["function"])(["ab"]) == [-2.0]
    assert made["model"]["init_args"]["backbone"]["name"] == "org/model"


@pytest.mark.parametrize("reward", ["lambda completions, **_: [0.0]", "Scorer('x: y')", "build()"])
def test_a_reward_without_a_name_is_one_that_no_run_takes(reward: str, tmp_path: Path) -> None:
    text = ROWS.format(rows=FUNCTIONS, rewards=f"[short, {reward}]")
    written, made = translated(tmp_path, text, name="train.py")
    parts = made["model"]["init_args"]["reward"]["init_args"]["rewards"]
    assert parts["reward_2"]["init_args"]["function"] == "NAME_YOUR_REWARD.py:reward_2"
    assert f"#   reward_funcs: {reward}: It has no name" in written


def test_no_reward_is_said(tmp_path: Path) -> None:
    written, _ = translated(tmp_path, "beta: 0.1\nnum_generations: 2", "--task", "grpo")
    assert "#   reward: None was found: set `model.reward`" in written


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ('load_dataset("d", split=f"train[:{n}]")', "load_dataset, split: `f'train[:{n}]'`"),
        ('load_dataset("d", data_dir="sub")', "load_dataset, data_dir: No source here has it"),
        ('load_dataset("d", revision="abc")', "load_dataset, revision: Set `data.train.revision`"),
        (
            '[load_dataset("d", "a"), load_dataset("d", "b")]',
            "load_dataset: It loads several (d a train, d b train)",
        ),
        (
            '[load_dataset("d"), load_dataset("e", split="test")]',
            "load_dataset, for evaluation: e, test",
        ),
        (
            'load_dataset("json", data_files="a.json", split="train[:9]")',
            "load_dataset, split: Files are read whole",
        ),
    ],
)
def test_rows_that_are_not_read_as_they_are(rows: str, told: str, tmp_path: Path) -> None:
    written, _ = translated(
        tmp_path, ROWS.format(rows=f"rows = {rows}", rewards="f"), name="train.py"
    )
    assert f"#   {told}" in written


def test_a_part_for_each_split(tmp_path: Path) -> None:
    rows = 'rows, held = load_dataset("d", split=["train_sft", "test_sft"])'
    _, made = translated(tmp_path, ROWS.format(rows=rows, rewards="f"), name="train.py")
    data = made["data"]["init_args"]
    assert data["train"]["init_args"]["split"] == "train_sft"
    assert data["val"]["init_args"]["split"] == "test_sft"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "a.py",
            "TrlParser((ScriptArguments, DPOConfig, ModelConfig))",
            "give that: `lit-rlhf from-trl options.yaml --task dpo`.",
        ),
        ("a.ipynb", "{}", "is a notebook"),
    ],
)
def test_the_way_out(
    name: str, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit):
        main(["from-trl", str(tmp_path / name)])
    assert said in " ".join(capsys.readouterr().err.split())
