"""TRL's configurations and scripts as ours."""

import ast
import json
import os
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

from lit_rlhf.cli import main
from lit_rlhf.cli.from_trl import Writer, translate
from lit_rlhf.cli.trl_options import ALIASES, COMMON, TASKS, UNSET, option
from lit_rlhf.cli.trl_script import Script
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.rewards.functions import load_function
from lit_rlhf.testing import tiny_demonstrations, tiny_preferences, tiny_prompts
from tests.docs.from_trl import PAGE, tables
from tests.walks import walk

COMMANDS = {name.removesuffix("Config").lower(): name for name in TASKS}

COMMONLY_SET = """
model_name_or_path: org/model
dataset_name: org/data
dataset_config: main
output_dir: out
learning_rate: 3.0e-6
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
num_train_epochs: 2
lr_scheduler_type: constant_with_warmup
warmup_steps: 10
eval_strategy: steps
eval_steps: 20
save_steps: 30
save_total_limit: 3
logging_steps: 5
seed: 7
bf16: true
max_grad_norm: 0.5
use_peft: true
lora_r: 8
load_in_4bit: true
hub_model_id: mine
"""

SCRIPT = """
import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

raise SystemExit("a script that is read is never run")
MODEL = "org/model"


def short(completions, **columns):
    return [-float(len(each)) for each in completions]


config = GRPOConfig(
    "out", learning_rate=2e-6, num_generations=4, per_device_train_batch_size=8, gradient_accumulation_steps=2,
    beta=0.01, loss_type="dr_grpo", max_completion_length=100, top_p=0.9, temperature=float("1"),
    model_init_kwargs={"dtype": torch.bfloat16},
)
trainer = GRPOTrainer(
    model=MODEL, args=config, reward_funcs=[short, accuracy_reward, "org/reward-model"],
    train_dataset=load_dataset("json", data_files="prompts.jsonl", split="train"),
    peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
)
"""


def translated(tmp_path: Path, text: str, *words: str, name: str = "trl.yaml") -> tuple[str, dict]:
    """What the command writes for a file, as text and as its options."""
    (tmp_path / name).write_text(text)
    (tmp_path / "my.yaml").unlink(missing_ok=True)
    main(["from-trl", str(tmp_path / name), *words, "--output", str(tmp_path / "my.yaml")])
    written = (tmp_path / "my.yaml").read_text()
    return written, yaml.safe_load(written)


@pytest.mark.parametrize("command", walk(COMMANDS, "dpo", "ppo"))
def test_what_it_writes_loads(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peft = command not in ("dpo", "kto")
    text = (
        COMMONLY_SET
        if peft
        else COMMONLY_SET.replace("use_peft: true\n", "").replace("load_in_4bit: true\n", "")
    )
    written, _ = translated(tmp_path, text, "--task", command)
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(tmp_path / "my.yaml"), "--print_config"])
    assert not end.value.code
    loaded = yaml.safe_load(capsys.readouterr().out)
    model, data = loaded["model"]["init_args"], loaded["data"]["init_args"]
    assert loaded["run_dir"] == "out"
    assert loaded["seed_everything"] == model["seed"] == 7
    assert model["optimizer"]["init_args"]["lr"] == 3e-6
    assert model["optimizer"]["init_args"]["betas"] == [0.9, 0.999]
    assert model["lr_scheduler"]["init_args"]["total_iters"] == 10
    assert model["backbone"]["name"] == data["tokenizer"] == "org/model"
    assert (model["backbone"]["lora"] or {}).get("rank") == (8 if peft else None)
    assert model["backbone"]["quantization"] == ("nf4" if peft else "none")
    assert data["train"]["init_args"]["name"] == data["val"]["init_args"]["name"] == "org/data"
    assert loaded["trainer"]["max_epochs"] == 2
    assert "learning_rate" in next(line for line in written.splitlines() if " lr: " in line)
    assert "#   hub_model_id: Nothing is uploaded" in written
    if command in ("ppo", "grpo", "rloo"):
        assert model["updates"]["max_grad_norm"] == 0.5
        assert data["batch_size"] == {"ppo": 16, "grpo": 2, "rloo": 8}[command]
    else:
        assert loaded["trainer"]["gradient_clip_val"] == 0.5
        assert loaded["trainer"]["accumulate_grad_batches"] == data["batch_size"] == 4


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(each, marks=[] if each in ("reward", "grpo") else pytest.mark.slow)
        for each in COMMANDS
    ],
)
def test_what_it_writes_trains_for_as_many_steps_as_there(
    command: str,
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    rows = {
        "sft": tiny_demonstrations,
        "ppo": tiny_prompts,
        "grpo": tiny_prompts,
        "rloo": tiny_prompts,
    }
    data, out = tmp_path / "rows.jsonl", tmp_path / "out"
    data.write_text(
        "".join(f"{json.dumps(row)}\n" for row in rows.get(command, tiny_preferences)(9))
    )
    rewards = [f"{tmp_path / 'my.py'}:{name}" for name in ("long", "short")]
    (tmp_path / "my.py").write_text(
        "def long(completions, **_):\n    return [len(c) for c in completions]\n\n\n"
        "def short(completions, **_):\n    return [-len(c) for c in completions]\n"
    )
    text = f"""
model_name_or_path: {tiny_model_dir}
dataset_name: {data}
output_dir: {out}
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
{"total_episodes: 12" if command == "ppo" else "max_steps: 3"}
lr_scheduler_type: {"constant" if command == "ppo" else "cosine"}
use_cpu: true
logging_steps: 1
report_to: none
"""
    if command in ("grpo", "rloo"):
        text += f"num_generations: 2\nmax_completion_length: 4\nreward_funcs: {rewards}\n"
    if command == "ppo":
        text += "response_length: 4\nuse_peft: true\n"
    translated(tmp_path, text, "--task", command)
    reward = ["--model.reward", "LengthReward"] if command == "ppo" else []
    main(["fit", "--config", str(tmp_path / "my.yaml"), *reward])
    assert not [each for each in recwarn if "serialize" in str(each.message)]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    batches = 3 if command in ("ppo", "grpo", "rloo") else 6  # of two accumulated batches each
    assert [line["iteration"] for line in lines if line["stage"] == "train"][-1] == batches
    assert "Done after" in capsys.readouterr().out


def test_every_option_is_taken_alone_at_its_default() -> None:
    """A rule that reads what isn't given would raise; and each is carried, or named with its reason."""
    values = {
        "loss_type": None,
        "reward_funcs": "my.reward",
        "dataset_name": "d",
        "optim": "sgd",
        "report_to": "none",
    }
    for task in TASKS:
        for name in {**COMMON, **TASKS[task].options}:
            known = option(task, name)
            value = values.get(name, 1 if known.default is UNSET else known.default)
            value = (
                value
                if name != "loss_type"
                else known.default
                if known.default is not UNSET
                else "nll"
            )
            written = translate(Writer(Script(task, {name: value}, {})), Path("trl.yaml"))
            assert known.ours or f"#   {name}: {known.note}" in written


def test_a_script_is_read_and_not_run(tmp_path: Path) -> None:
    written, made = translated(tmp_path, SCRIPT, name="train.py")
    model = made["model"]["init_args"]
    assert made["model"]["class_path"] == "GRPOPolicyModule"
    assert model["backbone"]["name"] == "org/model"
    assert model["backbone"]["dtype"] == "bfloat16"
    assert model["backbone"]["lora"] == {"rank": 4, "alpha": 8, "target_modules": "all-linear"}
    assert model["kl"]["init_args"]["coef"] == 0.01
    assert model["reduction"] == {"class_path": "ConstantLength", "init_args": {"length": 100}}
    parts = model["reward"]["init_args"]["rewards"]
    assert parts["short"]["init_args"]["function"] == f"{tmp_path / 'my_rewards.py'}:short"
    assert parts["accuracy_reward"]["init_args"]["function"] == "trl.rewards.accuracy_reward"
    assert parts["reward-model"] == {
        "class_path": "ModelReward",
        "init_args": {"path": "org/reward-model"},
    }
    data = made["data"]["init_args"]
    assert data["train"]["init_args"]["path"] == "prompts.jsonl"
    assert data["batch_size"] == 4
    for name in (
        "top_p: Rollouts come",
        "temperature: `float('1')` is no literal",
        "GRPOConfig('out'",
    ):
        assert f"#   {name}" in written


REWARDS = """
import functools
import math

from trl import GRPOConfig, GRPOTrainer

LIMIT, WORD = 5, "rain"
unit = 2.0


def length(text):  # of what was written
    return min(len(text), LIMIT)


def twice(function):
    @functools.wraps(function)
    def wrapped(*args, **columns):
        return [unit * each for each in function(*args, **columns)]

    return wrapped


@twice
def long(completions, **columns):
    return [float(length(each)) for each in completions]


def root(completions, **columns):
    return [math.sqrt(len(each)) for each in completions]


if __name__ == "__main__":
    unit = float(input())
    GRPOTrainer("org/model", [root], args=GRPOConfig(output_dir="out"), reward_funcs=[long, root, lambda c: [0.0]])
"""


def test_reward_functions_leave_the_script_with_what_they_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written, made = translated(tmp_path, REWARDS, name="train.py")
    parts = made["model"]["init_args"]["reward"]["init_args"]["rewards"]
    long, root = (load_function(parts[name]["init_args"]["function"]) for name in ("long", "root"))
    assert (long(["rainbow"]), root(["rain"])) == ([10.0], [2.0])
    moved = (tmp_path / "my_rewards.py").read_text()
    assert "# of what was written" in moved
    assert "trl" not in moved
    assert "__main__" not in moved
    assert "#   reward_funcs: lambda c: [0.0]: It has no name" in written
    assert (
        f"Wrote {tmp_path / 'my.yaml'} and {tmp_path / 'my_rewards.py'}." in capsys.readouterr().out
    )


def test_on_standard_output_they_stay_in_the_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.py").write_text(REWARDS)
    main(["from-trl", str(tmp_path / "train.py")])
    said = capsys.readouterr().out
    assert f"function: {tmp_path / 'train.py'}:root" in said
    assert "With --output it is written into a file of its own" in said
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def test_rows_are_held_out_where_the_script_evaluates(tmp_path: Path) -> None:
    held = [
        translated(tmp_path, f"dataset_name: a.jsonl{more}", "--task", "dpo")[1]["data"][
            "init_args"
        ]["val_fraction"]
        for more in ("", "\neval_strategy: steps")
    ]
    assert held[0] == 0.0 < held[1]


@pytest.mark.parametrize(
    ("given", "loss"),
    [
        ("loss_type: hinge\nbeta: 0.2", {"class_path": "RSOHinge", "init_args": {"gamma": 0.2}}),
        ("loss_type: ipo", {"class_path": "MeanIPO", "init_args": {"tau": 0.1}}),
        (
            "f_divergence_type: forward_kl",
            {"class_path": "ForwardKLDPO", "init_args": {"beta": 0.1}},
        ),
        (
            "ld_alpha: 0.3",
            {"class_path": "LengthDesensitizedDPO", "init_args": {"beta": 0.1, "alpha": 0.3}},
        ),
        ("use_weighting: true", {"class_path": "WPO", "init_args": {"beta": 0.1}}),
    ],
)
def test_losses_of_dpo(given: str, loss: dict, tmp_path: Path) -> None:
    _, made = translated(tmp_path, given, "--task", "dpo")
    assert made["model"]["init_args"]["loss"] == loss


def test_a_task_that_the_options_show_needs_no_word(tmp_path: Path) -> None:
    _, made = translated(tmp_path, "desirable_weight: 2.0")
    assert made["model"]["init_args"]["loss"]["init_args"]["desirable_weight"] == 2.0


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "beta: 0.1", "Say which by --task, of dpo, kto, grpo, rloo"),
        ("a.yaml", "- 1", "option: value"),
        ("a.yaml", "a: [", "can't be read"),
        ("a.py", "def f(:", "can't be read"),
        ("a.py", "print(1)", "makes none of SFTConfig"),
        ("a.py", "SFTConfig()\nDPOConfig()", "makes SFTConfig, DPOConfig: say which by --task"),
    ],
)
def test_what_it_cannot_read(
    name: str, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as end:
        main(["from-trl", str(tmp_path / name)])
    assert isinstance(end.value.__cause__, ConfigurationError)
    assert said in capsys.readouterr().err


def test_the_page_is_the_table() -> None:
    assert tables() in PAGE.read_text(encoding="utf-8"), "python -m tests.docs.from_trl writes it"


# -- against TRL itself
# ----------------------------------------------------------------------------------------------------


def _fields(root: Path, name: str) -> dict[str, object]:
    """A dataclass's own fields with their defaults; read, for TRL isn't of this environment."""
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name == name:
                return {
                    each.target.id: _default(each.value)
                    for each in node.body
                    if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
                }
    raise AssertionError(f"{root} has no class {name}")


def _default(node: ast.AST | None) -> object:
    if isinstance(node, ast.Call):
        given = {each.arg: each.value for each in node.keywords}
        node = given.get("default", given.get("default_factory"))
    node = node.body if isinstance(node, ast.Lambda) else node
    try:
        return ast.literal_eval(node) if node is not None else UNSET
    except ValueError:
        return UNSET


@pytest.mark.trl
def test_the_table_is_of_trl_s_real_fields() -> None:
    """LIT_RLHF_TRL holds trl==1.16.0, LIT_RLHF_TRL_PPO trl==1.12.0: `pip install --no-deps --target`."""
    stable, last = Path(os.environ["LIT_RLHF_TRL"]), Path(os.environ["LIT_RLHF_TRL_PPO"])
    of_all = _fields(stable / "trl" / "trainer", "_BaseConfig")
    shared = {each.name: each.default for each in fields(TrainingArguments)} | of_all
    for name in ("ModelConfig", "ScriptArguments", "GRPOScriptArguments", "DatasetMixtureConfig"):
        shared |= _fields(stable / "trl" / ("scripts" if "Model" not in name else "trainer"), name)
    every: dict[str, object] = {}
    for task in TASKS:
        own = _fields(
            (last / "trl" / "experimental" / "ppo")
            if task == "PPOConfig"
            else stable / "trl" / "trainer",
            task,
        )
        every |= own
        lacking = [name for name in {**of_all, **own} if option(task, name) is None]
        assert not lacking, f"{task}: {lacking} aren't in the table"
        extra = set(TASKS[task].options) - {*own, *shared} - {"missing_eos_penalty"}
        assert not extra, f"{task} of TRL has no {extra}"
        real = shared | own
        for name, default in real.items():
            known = option(task, name)
            if known is None or known.default is UNSET or default is UNSET:
                continue
            assert known.default == default, f"{task}.{name}"
    assert not set(COMMON) - set(shared) - set(every) - OF_OTHERS, "no such fields"
    assert not set(ALIASES) & set(shared)


OF_OTHERS = {
    "max_prompt_length",
    "group_by_length",
    "logging_dir",
    "warmup_ratio",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_use_double_quant",
}
"""Of earlier releases of transformers, and of BitsAndBytesConfig."""
