"""Slips on the command line are answered with what was meant."""

import re
from pathlib import Path

import pytest

from lit_rlhf.cli import main
from lit_rlhf.cli.commands import COMMANDS, TRAINING
from lit_rlhf.cli.completion import LIKE_FIT, options_of
from lit_rlhf.cli.early import no_option
from lit_rlhf.cli.other_names import _MODEL, _ROWS, _WHERE, TABLE, _of_trl, by_another_name
from lit_rlhf.cli.shipped import RECIPES
from tests.cli.test_main import CONSTANT, POLICY, REWARD, refused, trained
from tests.walks import walk

__all__ = ["trained"]
DDP = "lightning.pytorch.strategies.DDPStrategy"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rewrd"], "lit-rlhf: there is no command 'rewrd'. Did you mean reward?"),
        (["push", "out", "me/it", "--dryrun"], "no option --dryrun. Did you mean --dry_run"),
        (["generate", "--promt", "a"], "no option --promt. Did you mean --prompt"),
        (["generate", "--data", "a"], "no option --data. Did you mean --prompts?"),
        (["chat", "--model", "a"], "Did you mean MODEL, without a name? lit-rlhf chat --help"),
        (["estimate", "-c", "sft/lora", "--lr", "1"], "Did you mean --model.optimizer.lr? lit-rl"),
        (["label", "a.jsonl", "--output", "b.jsonl", "--judge", "LocalJuge"], "mean LocalJudge"),
        (["from-trl", "a.py", "--task", "rewards"], "Expected one of 'sft', 'reward',"),
        (["report"], "runs must be given: lit-rlhf report --help"),
        (["report", "data/prompts.jsonl"], "is a file: give the directory of a run"),
        (["help", "dpoo"], "lit-rlhf help COMMAND"),
        (["verify", "--methods", "DPPO"], "no method 'DPPO' to verify. Did you mean PPO or DPO"),
        (
            ["verify", "--model.class_path", "os.PathLik"],
            "os defines no 'PathLik'. Did you mean PathLike",
        ),
        (
            ["generate", "--model", "runs/sft/lora", "--prompt", "a"],
            "give its export, runs/sft/lora/export",
        ),
        (
            ["generate", "--model", "data/tiny-mode", "--prompt", "a"],
            "Did you mean data/tiny-model?",
        ),
        (["data", "show", "data/promts.jsonl"], "Did you mean data/prompts.jsonl?"),
        (
            [
                "iterate",
                "--policy=p",
                "--run_dir=r",
                "--method=IterativeDPO",
                "--method.feedback=RevisionFeedback",
                "--method.feedback.judge=nan",
            ],
            "method.feedback.judge: ",
        ),
        *(
            (
                [
                    "iterate",
                    "--policy=p",
                    "--run_dir=r",
                    "--method=RejectionSampling",
                    "--method.prompts=p.jsonl",
                    f"--method.reward={given}",
                ],
                f"lit-rlhf iterate: method.reward: {given!r} is no mapping of options. Give {{name: value",
            )
            for given in ("LengthReward", "rewards/nonesuch.yaml", "{class_path: ")
        ),
        (["from-trl", "beside.pi"], "There is no file beside.pi (looked in"),
        (
            ["fit", *REWARD, "--run_dir", "r", "--seed_everything", "3"],
            "seed_everything=3 with model.seed=0 changes nothing",
        ),
        (
            ["fit", *REWARD, "--run_dir", "r", f"--trainer.strategy={DDP}"],
            f"Of a class say that it is one: --trainer.strategy.class_path {DDP}",
        ),
        (  # which is whole by itself
            ["fit", *POLICY, *CONSTANT, "--run_dir", "r", "-c", "overlays/ahead"],
            "No vLLM server at http://127.0.0.1:8000 can be used.",
        ),
        (
            ["fit", *POLICY, *CONSTANT, "--trainer.gradient_clip_algorithm", "norm"],
            "\nlit-rlhf fit: trainer.gradient_clip_algorithm=norm: PPOPolicyModule steps its optimizer itself",
        ),
        (
            [
                "fit",
                *REWARD,
                "--trainer.gradient_clip_val=null",
                "--trainer.gradient_clip_algorithm=norm",
            ],
            "\nlit-rlhf fit: trainer.gradient_clip_algorithm=norm says how to clip to trainer.gradient_clip_val,",
        ),
        (
            ["fit", *REWARD, "--trainer.min_epochs", "3", "--trainer.max_epochs", "2"],
            "\nlit-rlhf fit: trainer.min_epochs=3 is never reached: trainer.max_epochs=2 ends the run before.",
        ),
        (
            ["fit", *REWARD, "--trainer.min_steps", "3", "--trainer.max_steps", "2"],
            "\nlit-rlhf fit: trainer.min_steps=3 is never reached: trainer.max_steps=2 ends the run before.",
        ),
        (
            ["fit", *POLICY, *CONSTANT, "--trainer.max_steps", "0"],
            "\nlit-rlhf fit: trainer.max_steps=0 trains nothing.",
        ),
        (
            ["fit", *REWARD, "--trainer.max_epochs", "0"],
            "\nlit-rlhf fit: trainer.max_epochs=0 trains nothing. Give 1",
        ),
    ],
)
def test_slips_name_what_was_meant(
    words: list[str],
    message: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    said = refused(capsys, words)
    assert message in said
    assert "Traceback" not in said


def test_dashes_in_an_options_own_name_are_underscores(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    for words, shown in (
        (["fit", *REWARD, "--run-dir", "a-b"], "run_dir: a-b"),
        (["generate", "--model=m", "--num-samples=3"], "num_samples: 3"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--print-config"])
        assert stop.value.code in (None, 0)
        assert shown in capsys.readouterr().out
    for words, meant in (
        (
            ["fit", *REWARD, "--data.batch-size=3"],
            "no option 'batch-size'. Did you mean batch_size",
        ),
        (["dpo", "--model.init-args.seed=3"], "no option 'init-args'. Did you mean init_args"),
        (["generate", "--model=m", "--sampling.top-k=3"], "no option 'top-k'. Did you mean top_k"),
        (["estimate", *REWARD, "--trainer.max-epochs=3"], "Did you mean --trainer.max_epochs"),
    ):
        assert meant in refused(capsys, words)


@pytest.mark.parametrize("command", [*COMMANDS, "data show", "data inspect", "data convert"])
def test_a_wrong_option_points_to_the_help_of_its_own_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, [*command.split(), "--nonesuch", "1"])
    assert f"lit-rlhf {command.split(maxsplit=1)[0]}: " in said
    if command != "data":  # whose commands are named
        assert re.findall(r"lit-rlhf [\w ()-]+ --help", said) == [f"lit-rlhf {command} --help"]


def test_a_slip_is_compared_with_all_that_a_command_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for option, meant in (("--crd", "--card"), ("--run_dri", "--run_dir")):
        with pytest.raises(SystemExit):
            main(["estimate", "-c", "sft/lora", option, "1"])
        assert f"Did you mean {meant}?" in capsys.readouterr().err


VALUES = {
    "gradient_checkpointing": "true",
    "dtype": "float32",
    "quantization": "nf4",
    "precision": "bf16-mixed",
    "model.loss": "BCO",
    "run_dir": "elsewhere",
    "logger": "false",
    "data.val.path": "a.jsonl",
    "format": "ImplicitPrompt",
    "ckpt_path last": "",
}  # else 1


OF_TRAINING = [row for row in TABLE if set(row[2].split()) <= set(RECIPES)]


@pytest.mark.parametrize(("names", "ours", "recipes"), walk(OF_TRAINING, *OF_TRAINING[:3]))
def test_what_others_call_an_option_is_answered_with_ours(
    names: str, ours: str, recipes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = (recipes or "dpo").split()[-1]
    taken = {*options_of(recipe), "--reward"}  # its own
    for name in names.split():
        for command in (recipe, "fit"):
            if command == recipe and f"--{name}" in taken:
                continue
            said = refused(capsys, [command, f"--{name}", "1"])
            assert re.search(rf"(mean|or) --{re.escape(ours)}( or|\?)", said), said
    value = next((value for end, value in VALUES.items() if ours.endswith(end)), "1")
    with pytest.raises(SystemExit) as ended:
        main([recipe, "--print_config", *f"--{ours} {value}".split()])
    assert ended.value.code == 0


def test_what_trl_calls_an_option_is_answered_by_its_own_table() -> None:
    """Which ours says nothing twice of, and `estimate` takes as `fit` does."""
    for command in ("fit", "estimate"):
        asked = by_another_name("--lora-r", command), by_another_name("--learning_rate", command)
        assert asked == (
            " Did you mean --model.backbone.lora.rank?",
            " Did you mean --model.optimizer.lr?",
        )
    twice = [
        (name, ours)
        for names, ours, recipes in OF_TRAINING
        for name in names.split()
        if all(f"--{ours}" in _of_trl(name, recipe) for recipe in recipes.split() or RECIPES)
    ]
    assert not twice


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in (*RECIPES, "fit")])
def test_what_another_command_calls_an_option_is_answered_with_its_own(command: str) -> None:
    own = {each.removeprefix("--") for each in options_of(command)}
    rows = [row for row in TABLE if command in row[2].split()]
    for names, ours, _ in rows:
        for name in set(names.split()) - own:
            meant = ours if ours.isupper() else f"--{ours}"
            assert re.search(rf"(mean|or) {meant}( or|\?|,)", no_option(f"--{name} 1", command))
        firsts = {each.removeprefix("--").split(".")[0] for each in ours.split(" or ")}
        assert ours.isupper() or firsts <= own
    classes = (*LIKE_FIT, "verify")  # whose --model is one
    if COMMANDS[command].module != TRAINING and command not in classes:
        for group in (_MODEL, _ROWS, _WHERE):
            mine = own.intersection(group.split()) - {"policy", "dataset"}
            told = {ours.split(".")[0] for names, ours, _ in rows if group in names}
            assert not mine or told, f"{command} has {mine}: give it a row in other_names.TABLE"


def test_a_start_that_is_refused_leaves_a_run_as_it_was(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    run = Path("runs/reward/lora")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit):
        main(["fit", *REWARD, "--run_dir", str(run), "--model.backbone.lora.alpha", "3"])
    assert "holds checkpoints of an earlier run" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model.optimizer.lrr", "1"],
            "model.optimizer: torch.optim.AdamW has no option 'lrr'. Did you mean lr?",
        ),
        (
            ["--model.lr_scheduler", "CosineAnnealingLR"],
            "model.lr_scheduler: T_max must be given: --model.lr_scheduler.help shows what it is",
        ),
        (
            ["--model.optimizer", "AdamV"],
            "model.optimizer: there is no class 'AdamV'. Did you mean Adam",
        ),
        (
            ["--trainer.logger", "CSVLoger"],
            "trainer.logger: there is no class 'CSVLoger'. Did you mean CSVLogger",
        ),
        (
            ["--trainer.callbacks+=EarlyStoping"],
            "trainer.callbacks: there is no class 'EarlyStoping'. Did you mean EarlyStopping?",
        ),
        (
            ["--trainer.callbacks+=EarlyStopping"],
            "trainer.callbacks: monitor must be given: --trainer.callbacks.help shows what it is\n",
        ),
        (
            [f"--trainer.strategy={DDP}", "--trainer.strategy.find_unused", "true"],
            f"trainer.strategy: {DDP} has no option 'find_unused'. Its options: ",
        ),
        (
            ["--model.backbone", "data/tiny-model"],
            "model.backbone: 'data/tiny-model' stands where a group of options does: --model.b",
        ),
        (
            ["--model.backbone.lora", "true"],
            "model.backbone.lora: 'True' stands where a group of options does: --model.backbone",
        ),
        (
            ["--trainer.max-epochs", "1"],
            "there is no option --trainer.max-epochs. Did you mean --trainer.max_epochs",
        ),
        (["--modle.seed", "1"], "there is no option --modle.seed. Did you mean --model"),
    ],
)
def test_an_option_of_a_class_that_is_not_ours_is_said_without_the_noise_of_the_parser(
    words: list[str],
    message: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    shown = refused(capsys, ["fit", *REWARD, *words]).partition("lit-rlhf fit: ")[2]
    assert shown.startswith(message)
    assert len(shown) < 300


def test_a_group_that_a_class_has_not_is_said_with_its_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`steps` is of modules that Lightning steps; the same numbers of policies are in `updates`."""
    said = refused(capsys, ["fit", "-c", "policy/grpo_lora", "--model.steps.max_skipped", "1"])
    assert "model: there is no option --model.steps.max_skipped. --model.help shows those" in said
    assert "Did you mean" not in said


@pytest.mark.parametrize(
    ("config", "overlay", "message"),
    [
        ("policy/online_dpo_lora", "vllm", "OnlineDPOPolicyModule has no option 'importance_corr"),
        ("sft/lora", "arithmetic", "SupervisedModule has no option 'reward'. Its options: "),
    ],
)
def test_an_overlay_for_other_modules_is_answered_with_the_option_that_is_not_there(
    config: str, overlay: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, ["fit", "-c", config, "-c", f"overlays/{overlay}"])
    assert f"lit-rlhf fit: model: {message}" in said
    assert "Did you mean importance_correction" not in said


def test_what_a_module_of_ones_own_raises_is_said_with_its_place(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    Path("broken.py").write_text(
        "from lit_rlhf.modules import RewardModelModule\n\n\nclass Broken(RewardModelModule):\n"
        "    def __init__(self, *args, **options):\n        raise KeyError('layers')\n"
    )
    said = f"lit-rlhf fit: 'layers' (KeyError, {trained / 'broken.py'}:6)."
    assert said in refused(capsys, ["fit", *REWARD, "--model.class_path", "broken.Broken"])


def test_what_lightning_refuses_within_a_run_is_a_sentence(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    assert "lit-rlhf fit: `val_check_interval` (1000) must be less" in refused(
        capsys, ["fit", *REWARD, "--run_dir", "runs/rare", "--trainer.val_check_interval", "1000"]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "trainer:\n  max_epochs: 1\nrun_dir: r\ntrainer:\n  max_steps: 2\n",
            "own.yaml has trainer twice, in lines 1 and 4, of which the last alone would count",
        ),
        (
            "trainer:\n  callbacks:\n  - class_path: Timer\n    class_path: Preemption\n",
            "own.yaml has trainer.callbacks.class_path twice, in lines 3 and 4",
        ),
        ("# trainer:\n#   max_epochs: 1\n", "own.yaml holds no options: leave it out"),
        ("- max_epochs: 1\n", "own.yaml is no mapping of options, {name: value}"),
        (
            "trainer:\n  max_epoch: 1\n",
            "there is no option --trainer.max_epoch. Did you mean --trainer.max_epochs",
        ),
        ("trianer:\n  max_epochs: 1\n", "Did you mean --trainer.max_epochs"),
    ],
)
def test_slips_in_a_configuration(
    text: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(text)
    assert message in refused(capsys, ["fit", *REWARD, "-c", "own.yaml"])
