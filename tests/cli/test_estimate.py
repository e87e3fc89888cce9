"""`lit-rlhf estimate` on the configurations that come with the library."""

import json
from pathlib import Path

import pytest

from lit_rlhf.cli import main
from lit_rlhf.testing.tiny import write_tiny_world
from tests.walks import walk

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = [
    f"{stage}/{path.stem}"
    for stage in ("sft", "reward", "preference", "policy")
    for path in sorted((CONFIGS / stage).glob("*.yaml"))
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_tiny_world(root / "data")
    return root


@pytest.mark.parametrize(
    "name",
    walk(NAMES, "reward/nf4_lora", "policy/ppo_nf4_lora"),
)
def test_every_configuration_is_estimated(
    name: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its reward model and its data, which needn't be there."""
    monkeypatch.chdir(world)
    words = ["estimate", "-c", name, "-c", "overlays/tiny", "--card", "h100", "--json"]
    if "distill" in name:  # the overlay makes the student tiny
        words += ["--model.teacher.backbone.name", "data/tiny-model"]
    main([*words, "--prompt_tokens", "16", "--completion_tokens", "8"])
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    assert found["card"] == "H100 80 GB SXM"
    assert found["workload"]["prompt_tokens"] == 16
    phases = [phase["name"] for phase in found["phases"]]
    scored = ["reward"] if "distill" not in name else []
    wanted = ["rollout", *scored, "reference"] if name.startswith("policy") else []
    assert phases == [*wanted, "update", "optimizer"]
    assert ("weights: adapter policy" in found["phases"][0]["parts"]) == (
        "lora" in name and not name.startswith("reward")
    )


def test_a_table_for_people(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    main(
        [
            *("estimate", "-c", "sft/full", "-c", "overlays/tiny", "-c", "overlays/fsdp2"),
            *("--card", "a100-40", "--devices", "8", "--trainer.accelerator", "gpu"),
            *("--trainer.precision", "bf16-mixed", "--completion_tokens", "16"),
        ]
    )
    out = capsys.readouterr().out
    assert "A100 40 GB SXM" in out
    assert "gathered weights" in out
    assert "exchange" in out
    assert "It fits: " in out
    assert "4 prompts of 64 tokens with 1 completion(s) of 16" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Of which configuration?"),
        (["-c", "sft/lora", "--card", "tpu"], "choose one of h200, h100"),
        (["-c", "sft/lora", "--devices", "two"], "invalid int value: 'two'"),
        (["-c", "sft/lora", "--devices", "0"], "devices=0"),
        (["-c", "sft/lora", "--link", "-3"], "link='-3'"),
        (["-c", "sft/lora", "--trainer.strategy", "fsdp"], "Estimate fsdp2 instead"),
        (["-c", "sft/lora", "--prompt_tokens", "-1"], "prompt_tokens=-1"),
    ],
)
def test_what_is_wrong_is_said(
    words: list[str],
    said: str,
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(world)
    tiny = ["-c", "overlays/tiny"] if words else []
    with pytest.raises(SystemExit) as ended:
        main(["estimate", *words[:2], *tiny, *words[2:]])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
