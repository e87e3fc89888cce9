"""Training in one line, shipped configurations by name, and what they are in Python."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

import lit_rlhf
from lit_rlhf.cli import main
from lit_rlhf.cli.recipes import expand
from lit_rlhf.cli.shipped import RECIPES, SCORED, config_names, find_config, whole_text
from lit_rlhf.data import FileSource
from lit_rlhf.data.sources import local_source
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.testing.tiny import write_tiny_world

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_world(tmp_path_factory.mktemp("world") / "data").parent


def test_one_line_each_from_data_to_policy(
    world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No configs/ in the directory: those of the package are found by name."""
    monkeypatch.chdir(world)
    tiny = ["--model", "data/tiny-model", "-c", "overlays/tiny"]
    main(["reward", *tiny, "--data", "data/preferences.jsonl", "--run_dir", "r"])
    said = capfd.readouterr()
    assert "lit-rlhf fit -c reward/lora --model.backbone.name data/tiny-model" in said.err
    assert "lit-rlhf ppo --model MODEL --data PROMPTS --reward r/export" in said.out
    for noise in ("FLOPs", "`Trainer", "model shards", "Modules in"):
        assert noise not in said.err + said.out
    main(["ppo", *tiny, "--data", "data/prompts.jsonl", "--reward", "r/export", "--run_dir", "p"])
    assert Path("p/samples.jsonl").stat().st_size > 0
    assert Path("p/export/config.json").is_file()


@pytest.mark.parametrize("labels", [False, True])
def test_kto_takes_pairs_and_labels(
    labels: bool, world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    pairs = [json.loads(line) for line in Path("data/preferences.jsonl").read_text().splitlines()]
    rows = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    Path("labels.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = "labels.jsonl" if labels else "data/preferences.jsonl"
    words = ["kto", "--model", "data/tiny-model", "-c", "overlays/tiny", "--data", data]
    main([*words, "--run_dir", f"kto-{labels}"])
    assert f"{data}: {len(rows)} of {len(rows)}" in capfd.readouterr().out
    assert Path(f"kto-{labels}/export").is_dir()


@pytest.mark.parametrize("command", RECIPES)
def test_each_recipe_is_a_configuration_that_parses(
    command: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    scored = ["--reward", "here"] if command in SCORED else []
    words = [command, "--model", "m", "--data", "d.jsonl", *scored, "--trainer.max_epochs", "7"]
    with pytest.raises(SystemExit):
        main([*words, "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    options = config["model"]["init_args"]
    assert options["backbone"]["name"] == config["data"]["init_args"]["tokenizer"] == "m"
    assert config["data"]["init_args"]["train"]["init_args"]["path"] == "d.jsonl"
    assert config["trainer"]["max_epochs"] == 7
    assert command not in SCORED or options["reward"]["init_args"]["path"] == "here"


def test_data_may_be_a_directory_or_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "state.json").touch()
    assert expand(["sft", "--data", str(tmp_path)])[3:] == [
        *("--data.train", "DirectorySource"),
        *("--data.train.path", str(tmp_path)),
    ]
    shards = tmp_path / "someone" / "something"
    shards.mkdir(parents=True)  # what `data show` reads so too
    assert expand(["sft", "--data", str(shards)])[3:] == ["--data.train.path", str(shards)]
    assert isinstance(local_source(str(shards)), FileSource)
    assert expand(["sft", "--data", "someone/something"])[3:] == [
        *("--data.train", "HubSource"),
        *("--data.train.name", "someone/something"),
    ]
    name = "someone/llama-3.1-mixture"
    assert expand(["sft", "--data", name])[3:] == [
        *("--data.train", "HubSource"),
        *("--data.train.name", name),
    ]
    for files in ("missing.jsonl.bz2", "data/*", "s3://bucket/rows", "notes.txt"):
        assert expand(["sft", "--data", files])[3:] == ["--data.train.path", files]
    with pytest.raises(ConfigurationError, match="--model"):
        expand(["sft", "--model"])


@pytest.mark.parametrize("name", ["policy/ppo_lora", "configs/policy/ppo_lora.yaml", "ppo"])
def test_a_shipped_configuration_is_found_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name).samefile(CONFIGS / "policy" / "ppo_lora.yaml")


def test_a_name_that_is_none() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean policy/ppo_lora"):
        find_config("policy/ppo_lra")


@pytest.mark.parametrize(
    ("name", "meant"), [("rloo", "policy/rloo_lora"), ("tiny", "overlays/tiny")]
)
def test_the_last_part_of_a_name_will_do(name: str, meant: str) -> None:
    assert find_config(name).samefile(CONFIGS / f"{meant}.yaml")


def test_a_part_that_several_names_have_names_them() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean reward/full or sft/full"):
        find_config("full")


def test_options_win_over_files_wherever_they_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("data: {init_args: {batch_size: 3, seed: 8}}\n")
    words = ["dpo", "--model", "m", "--data", "d.jsonl", "--data.batch_size", "5"]
    for files in (["-c", str(own)], [f"--config={own}"]):
        with pytest.raises(SystemExit):
            main([*words, *files, "--print_config"])
        data = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
        assert (data["batch_size"], data["seed"]) == (5, 8)


def test_a_file_that_is_no_yaml_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("data: {init_args: {batch_size: 3}\n")
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(own)])
    assert f"{own} is no YAML" in capsys.readouterr().err


@pytest.mark.parametrize("name", config_names())
def test_a_copy_is_whole(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same values as the file with its parts, and each comment."""
    main(["init", name])
    copied = capsys.readouterr().out
    path = find_config(name)
    wanted = yaml.safe_load(path.read_text())
    for key in ("trainer", "data"):
        if isinstance(wanted.get(key), str):
            wanted[key] = yaml.safe_load((path.parent / wanted[key]).read_text())
    assert yaml.safe_load(copied) == wanted
    assert "../" not in whole_text(path)
    assert copied.count("#") >= path.read_text().count("#")


def test_the_list_of_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    main(["init"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == config_names()
    assert any(line.split()[:2] == ["policy/ppo_lora", "ppo"] for line in lines)
    assert not [line for line in lines if line.endswith((":", " after", "."))]


@pytest.mark.walk
def test_the_schema_knows_every_shipped_configuration(
    tmp_path: Path,
) -> None:
    main(["schema", "--output", str(tmp_path / "schema.json")])
    schema = json.loads((tmp_path / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    for name in [name for name in config_names() if not name.startswith("rounds/")]:
        path = find_config(name)
        for text in {whole_text(path), path.read_text()}:  # the same of one without parts
            check.validate(yaml.safe_load(text))
    wrong = yaml.safe_load(whole_text(find_config("ppo")))
    wrong["model"]["init_args"]["kl"]["init_args"]["coeff"] = 1
    assert not check.is_valid(wrong)
    assert not check.is_valid({"trainer": {"max_epoch": 1}})
    assert not check.is_valid({"model": {"class_path": "DPOModule", "init_arg": {}}})


def test_from_config_gives_the_parts(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    trainer, module, data = lit_rlhf.from_config(
        "sft", "overlays/tiny", "run_dir=parts", "model.seed=3", "trainer.limit_val_batches=0"
    )
    assert isinstance(module, lit_rlhf.SupervisedModule) and module.seed == 3
    assert not Path("parts/checkpoints").exists()
    trainer.fit(module, data)
    assert Path("parts/export").is_dir()
    with pytest.raises(ConfigurationError, match="learning_rate"):
        lit_rlhf.from_config("sft", "model.learning_rate=1")


@pytest.mark.parametrize(
    ("reward", "option"),
    [
        ("LengthReward", "--model.reward"),
        ("mine.Reward", "--model.reward"),
        ("runs/reward/export", "--model.reward.path"),
        ("org/Reward-1.5B", "--model.reward.path"),
        ("Here", "--model.reward.path"),
    ],
)
def test_a_reward_is_a_path_or_a_class(
    reward: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Here").mkdir()
    assert expand(["ppo", "--reward", reward])[-2:] == [option, reward]


def test_a_copy_takes_no_file_s_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "my.yaml"
    main(["init", "ppo", "--output", str(mine)])
    changed = mine.read_text().replace("coef: 0.05", "coef: 0.1")
    assert changed != mine.read_text()
    mine.write_text(changed)
    with pytest.raises(SystemExit):
        main(["init", "ppo", "--output", str(mine)])
    assert "my.yaml is there already. Choose another place by --output" in capsys.readouterr().err
    assert mine.read_text() == changed
