"""The command line as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lit_rlhf.cli import main
from lit_rlhf.cli.commands import COMMANDS, GROUPS
from lit_rlhf.cli.training import TrainingCLI
from lit_rlhf.files import read_lines
from lit_rlhf.testing import tiny_demonstrations, write_jsonl
from lit_rlhf.testing.tiny import write_tiny_world
from tests import warm
from tests.tolerances import FP32_MODEL
from tests.walks import walk

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = ["-c", str(CONFIGS / "overlays" / "tiny.yaml")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a reward model that was trained there."""
    root = tmp_path_factory.mktemp("trained")
    write_tiny_world(root / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        main(["fit", "-c", str(CONFIGS / "reward" / "lora.yaml"), *TINY])
        main(["fit", "-c", str(CONFIGS / "sft" / "lora.yaml"), *TINY])
    return root


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """What is said of words that a command refuses."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run the command in a process of its own."""
    return subprocess.run(
        [warm.python(), "-m", "lit_rlhf", *words], capture_output=True, text=True, check=False
    )


def test_help_names_every_command_and_class(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown for command in COMMANDS)
    assert all(len(line) <= 80 for line in shown.splitlines())
    heads = [line for line in shown.splitlines() if line.endswith(":") and " " not in line]
    assert heads == [f"{group}:" for group, commands in GROUPS.items() if commands]
    main(["fit", "--help"])
    shown = capsys.readouterr().out
    for name in (
        "PPOPolicyModule",
        "PreferenceDataModule",
        "ModelReward",
        "NativeEngine",
        "IterationCheckpoint",
    ):
        assert f"  {name} " in shown
    for name in (
        "RLHFModule",
        "OfflineModule",
        "PolicyModule",
        "BranchedDataModule",
        "Reward",
        "RolloutEngine",
    ):
        assert f"\n  {name} " not in shown, "made to be subclassed, not to be named"


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2
    assert "no command 'trian'" in capsys.readouterr().err


def test_errors_of_users_come_without_traceback(tmp_path: Path) -> None:
    result = run(
        "export", "--ckpt_path", str(tmp_path / "no.ckpt"), "--output", str(tmp_path / "out")
    )
    assert result.returncode == 2
    assert "There is no checkpoint file" in result.stderr
    assert "Traceback" not in result.stderr


POLICY = ["-c", str(CONFIGS / "policy" / "ppo_lora.yaml"), *TINY]
REWARD = ["-c", str(CONFIGS / "reward" / "lora.yaml"), *TINY]
CONSTANT = ["--model.reward", "LengthReward"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [*REWARD, "--model.lr_schedular", "null"],
            (
                "model: RewardModelModule has no option 'lr_schedular'. Did you mean lr_scheduler? "
                "Its options: --model.help Rew"
            ),
        ),
        (
            [*POLICY, "--model.kl.coeff", "0.2"],
            "model.kl: FixedKL has no option 'coeff'. Did you mean coef?",
        ),
        (
            [*REWARD, "--data.trian", "x"],
            "data: PreferenceDataModule has no option 'trian'. Did you mean train?",
        ),
        (
            ["--model", "PPOPolicy"],
            "model: there is no class 'PPOPolicy'. Did you mean PPOPolicyModule or",
        ),
        (
            ["--model", "absent.Mine"],
            "model: absent.Mine: there is no module 'absent' in the current directory",
        ),
        (
            [*REWARD, "--data.train", "prefs.jsonl"],
            (
                "data.train: prefs.jsonl: there is no module 'prefs' in the current directory or on PYTHONPATH. Of a "
                "file give the path: --data.train.path prefs.jsonl"
            ),
        ),
        (
            ["--data", "PreferenceDataModule", "--data.train", "{path: prefs.jsonl}"],
            "data.train: name a class, such as ArithmeticSource, DirectorySource, FileSource, HubSource",
        ),
        (
            [*POLICY, "--model.reward", "runs/a/export"],
            "model.reward: runs/a/export is neither a class nor a YAML file that is there.",
        ),
        (["--model.help", "DPO"], "--model.help: DPO is a class of another kind"),
        ([*POLICY, "--model.num_samples", "x"], "model.num_samples: Expected int. Got value: x"),
        ([*REWARD, "--model.backbone.lora.rank", "0"], "LoraSpec(rank=0): rank must be a whole"),
        ([*REWARD, "--rundir", "x"], "there is no option --rundir. Did you mean --run_dir?"),
        ([*REWARD, "more"], "more belongs to no option."),
        (
            ["--model", "PPOPolicyModule"],
            "model: reward must be given: --model.help shows what it is",
        ),
        (
            [*POLICY, *CONSTANT, "--model.gae.gamma", "1.5"],
            "GAE(gamma=1.5): gamma must be in [0, 1].",
        ),
        (
            [*POLICY, *CONSTANT, "--model.kl.coef", "-1"],
            "FixedKL(coef=-1.0): coef must be 0 or more.",
        ),
        (
            [*POLICY, *CONSTANT, "--trainer.gradient_clip_val", "0.7"],
            (
                "trainer.gradient_clip_val=0.7: PPOPolicyModule steps its optimizer itself and clips "
                "there. Remove it, and set m"
            ),
        ),
        (
            [*POLICY, *CONSTANT, "--trainer.accumulate_grad_batches", "2"],
            "trainer.accumulate_grad_batches=2: PPOPolicyModule sums gradients over microbatches itself.",
        ),
        ([*POLICY, *CONSTANT, "--trainer.deterministic", "x"], "trainer.deterministic: "),
        (
            [*REWARD, "--trainer.devices", "x"],
            "trainer.devices='x': the Trainer can't be made: `devices` selected with",
        ),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_wrong_options_are_named_in_a_line(
    words: list[str],
    message: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is wrong, where, and the way out; without the usage of the Trainer or the whole configuration."""
    monkeypatch.chdir(trained)
    shown = refused(capsys, ["fit", *words]).partition("lit-rlhf fit: ")[2]
    assert shown.startswith(message)
    assert len(shown) < 300


def test_classes_of_the_current_directory_are_found(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script `lit-rlhf` has the directory of scripts on its path, not the one where it is called."""
    monkeypatch.chdir(trained)
    monkeypatch.setattr(
        sys, "path", [place for place in sys.path if place not in ("", str(trained))]
    )
    (trained / "beside.py").write_text(
        "from lit_rlhf.modules import RewardModelModule\n\n\nclass Mine(RewardModelModule):\n    pass\n"
    )
    with pytest.raises(SystemExit):
        main(["fit", *REWARD, "--model.class_path", "beside.Mine", "--model.sead", "0"])
    assert "beside.Mine has no option 'sead'. Did you mean seed?" in capsys.readouterr().err


def test_exported_reward_gives_the_same_scores_in_transformers(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    (checkpoint,) = sorted(Path("runs/reward/lora/checkpoints").glob("*.ckpt"))[-1:]
    main(["export", "--ckpt_path", str(checkpoint.parent), "--output", "out/reward"])
    rows = tiny_demonstrations(5)
    data = write_jsonl("rows.jsonl", rows)
    capsys.readouterr()
    main(["score", "--model", str(checkpoint), "--data", str(data)])
    ours = [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()]
    main(["score", "--model", "out/reward", "--data", str(data), "--output", "scores.jsonl"])
    exported = [json.loads(line)["score"] for line in Path("scores.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained("out/reward")
    model = AutoModelForSequenceClassification.from_pretrained("out/reward").eval()
    theirs = []
    for row in rows:
        ids = (
            tokenizer(row["prompt"])["input_ids"]
            + tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        )
        ids = torch.tensor([[*ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            theirs.append(model(ids).logits.item())
    torch.testing.assert_close(torch.tensor(exported), torch.tensor(theirs), **FP32_MODEL)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), **FP32_MODEL)


def test_exported_policy_generates_the_same_greedy_text_in_transformers(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    (checkpoint,) = sorted(Path("runs/sft/lora/checkpoints").glob("*.ckpt"))[-1:]
    prompt, options = (
        "how was the film? ",
        ["--sampling.max_new_tokens", "8", "--sampling.temperature", "0", "--dtype", "float32"],
    )
    texts = []
    for name, merge in (("merged", "true"), ("adapter", "false")):
        main(
            ["export", "--ckpt_path", str(checkpoint), "--output", f"out/{name}", "--merge", merge]
        )
        capsys.readouterr()
        main(["generate", "--model", f"out/{name}", "--prompt", prompt, *options])
        texts.append(json.loads(capsys.readouterr().out)["response"])
    main(["generate", "--model", str(checkpoint), "--prompt", prompt, *options])
    texts.append(json.loads(capsys.readouterr().out)["response"])
    tokenizer = AutoTokenizer.from_pretrained("out/merged")
    model = AutoModelForCausalLM.from_pretrained("out/merged").eval()
    inputs = tokenizer(prompt, return_tensors="pt")
    found = model.generate(**inputs, max_new_tokens=8, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ]
    assert texts == [tokenizer.decode(found, skip_special_tokens=True)] * 3


def test_the_command_line_wins_over_the_checkpoint(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning alone would train with the rank that the checkpoint remembers, in silence."""
    monkeypatch.chdir(trained)
    (checkpoint,) = sorted(Path("runs/reward/lora/checkpoints").glob("*.ckpt"))[-1:]
    words = [
        "validate",
        "-c",
        str(CONFIGS / "reward" / "lora.yaml"),
        *TINY,
        "--ckpt_path",
        str(checkpoint),
    ]
    main(words)
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--model.backbone.lora.rank", "4"])
    assert stopped.value.code == 2


def test_generate_wants_one_kind_of_prompt(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    with pytest.raises(SystemExit):
        main(["generate", "--model", "data/tiny-model"])


def test_a_damaged_checkpoint_is_not_exported(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest has wrong bits: the one before it is taken, as `fit --ckpt_path last` does."""
    monkeypatch.chdir(tmp_path)
    (whole,) = sorted((trained / "runs/sft/lora/checkpoints").glob("*.ckpt"))[-1:]
    Path("checkpoints").mkdir()
    content = bytearray(whole.read_bytes())
    Path("checkpoints/iteration-00000001.ckpt").write_bytes(content)
    middle = slice(len(content) // 2, len(content) // 2 + 512)  # more than the padding of a record
    content[middle] = bytes(byte ^ 1 for byte in content[middle])
    Path("checkpoints/iteration-00000002.ckpt").write_bytes(content)
    monkeypatch.chdir(trained)  # the checkpoint names its base by a relative path
    with pytest.warns(UserWarning, match=r"Passed over iteration-00000002\.ckpt"):
        main(
            [
                "export",
                "--ckpt_path",
                str(tmp_path / "checkpoints"),
                "--output",
                str(tmp_path / "x"),
            ]
        )
    assert (tmp_path / "x" / "lit_rlhf.json").is_file()


def test_empty_answers_score_null(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    rows = [{"prompt": "p ", "completion": text, "score": 7} for text in ("", "good", " ")]
    data = write_jsonl("empty.jsonl", rows)
    words = ["--model", "runs/reward/lora/export", "--data", str(data), "--output", "scored.jsonl"]
    main(["score", *words])
    scores = [json.loads(line)["score"] for line in Path("scored.jsonl").read_text().splitlines()]
    assert scores[0] is None
    assert scores[2] is None
    assert isinstance(scores[1], float)
    assert [row["score_before"] for row in read_lines(Path("scored.jsonl"))] == [7, 7, 7]


@pytest.mark.walk
def test_what_a_command_imports(tmp_path: Path) -> None:
    """Files of the working directory hide no modules; what stays in memory isn't searched for garbage again.

    Console scripts have their own folder first; what the command adds comes last.
    """
    (tmp_path / "tty.py").write_text("1 / 0")
    code = (
        "from lit_rlhf.cli import main\ntry: main(['score', '--help'])\n"
        "except SystemExit: pass\nimport tty, gc, sys\n"
        "assert 'torch' in sys.modules and gc.isenabled() and gc.get_freeze_count() > 100_000"
    )
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["--model.optimizer.init_args.betas", "[.inf, 0.9]"], "model.optimizer.betas: "),
        (
            ["--model.optimizer.init_args.betas", "[2, 0.9]"],
            "model.optimizer: AdamW(lr=0.0001, betas=(2",
        ),
        (
            ["--model.lr_scheduler.init_args.start_factor", "7"],
            "model.lr_scheduler: LinearLR(start_fac",
        ),
        (["--data.num_workers", "-1"], "PreferenceDataModule(num_workers=-1): "),
        (["--trainer.logger", "WandbLogger"], "trainer.logger: WandbLogger(save_dir='"),
        (["--trainer.max_epochs", "-5"], "trainer.max_epochs=-5: the Trainer can't be made: "),
        (
            ["--model.backbone", "null"],
            "model: RewardModelModule(backbone=null): backbone must have",
        ),
        (["--model.seed", "null"], "model: RewardModelModule(seed=null): seed must have a value."),
        (["--model.backbone.lora.rank", "null"], "LoraSpec(rank=null): rank must have a value."),
        (["--ckpt_path", "data"], "ckpt_path='data' is a directory: give a file such as"),
        (["--ckpt_path", "nix.ckpt"], "ckpt_path='nix.ckpt' isn't there: give a file such as"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_other_constructors_refuse_is_said_in_a_line(
    words: list[str],
    start: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *REWARD, "--run_dir", "runs/refused", *words])
    assert stopped.value.code == 2
    (said,) = capsys.readouterr().err.partition("lit-rlhf fit: ")[2].splitlines()
    assert said.startswith(start)


@pytest.mark.parametrize("debug", ["", "1"])
def test_errors_of_ones_own_classes_say_where(
    debug: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setenv("LIT_RLHF_DEBUG", debug)
    Path("faulty.py").write_text(
        "from lightning.pytorch import Callback\n\n\nclass Faulty(Callback):\n"
        "    def __init__(self, scale: int = 0) -> None:\n        self.inverse = 1 / scale\n"
    )
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *REWARD, "--trainer.callbacks+=faulty.Faulty"])
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    said = "trainer.callbacks: Faulty() can't be made: division by zero (ZeroDivisionError, "
    assert f"lit-rlhf fit: {said}{trained / 'faulty.py'}:6). LIT_RLHF_DEBUG=1" in shown
    assert ("Traceback" in shown) == bool(debug)


def test_warm_up_and_cosine_are_options(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    steps = {"total_steps": 8, "warmup_steps": 3}
    schedule = {"class_path": "WarmupCosine", "init_args": steps}
    words = ["--model.lr_scheduler", json.dumps(schedule), "--model.optimizer.lr", "0.004"]
    main(["fit", *REWARD, *words, "--run_dir", "runs/cosine"])
    lines = map(json.loads, Path("runs/cosine/metrics.jsonl").read_text().splitlines())
    rates = [line["train/lr"] for line in lines if "train/lr" in line]
    assert rates == pytest.approx([0.001, 0.002])


NULLS = {
    "reward": ["backbone.lora", "lr_scheduler", "optimizer", "loss"],
    "policy": ["backbone.lora", "kl", "updates", "gae", "value_loss", "sampling", "engine"],
}
NULLED = [(kind, key) for kind, keys in NULLS.items() for key in keys]


@pytest.mark.parametrize("way", ["command line", "file"])
@pytest.mark.parametrize(
    ("kind", "key"), walk(NULLED, ("reward", "optimizer"), ("policy", "engine"))
)
def test_null_takes_an_optional_part_away(
    kind: str, key: str, way: str, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Shown by the configuration that is printed: whatever stood there before is gone."""
    monkeypatch.chdir(trained)
    words = [f"--model.{key}", "null"]
    if way == "file":
        tree: object = None
        for part in reversed(["model", "init_args", *key.split(".")]):
            tree = {part: tree}
        (tmp_path / "null.yaml").write_text(json.dumps(tree))
        words = ["-c", str(tmp_path / "null.yaml")]
    found: list[object] = []

    class Parsed(Exception):  # noqa: N818
        pass

    def stop(cli: TrainingCLI) -> None:
        found.append(cli.config[cli.subcommand].model.init_args.get(key))
        raise Parsed

    monkeypatch.setattr(TrainingCLI, "before_instantiate_classes", stop)
    with pytest.raises(Parsed):
        main(["fit", *({"reward": REWARD, "policy": [*POLICY, *CONSTANT]}[kind]), *words])
    assert found == [None]
