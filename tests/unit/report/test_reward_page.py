"""The page of a reward model, made by the command from real models and hostile rows."""

import json
from pathlib import Path

import pytest

from lit_rlhf.cli import main
from lit_rlhf.models import Backbone, ModelSpec, export_reward
from lit_rlhf.testing import tiny_preferences, tiny_rankings, write_jsonl
from tests.unit.report.test_page import HOSTILE, Reader


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """Two reward models, pairs with soft labels and hostile texts, rankings."""
    root = tmp_path_factory.mktemp("pages")
    for seed in (0, 1):
        spec = ModelSpec(name=str(tiny_model_dir), init_seed=seed)
        backbone = Backbone.load(spec, lm_head=False, trainable=False)
        backbone.add_head("reward")
        export_reward(backbone, root / f"rm{seed}", merge=True)
    rows = [
        {**row, "p_chosen": 0.9, "votes": 10, "subset": HOSTILE if i % 2 else "b"}
        for i, row in enumerate(tiny_preferences(24))
    ]
    rows[0]["chosen"] += HOSTILE
    rows[3]["prompt"] += HOSTILE
    write_jsonl(root / "pairs.jsonl", rows)
    write_jsonl(root / "rankings.jsonl", tiny_rankings(10, completions=4))
    return root


def page_of(world: Path, *words: str) -> tuple[Reader, dict]:
    output = world / "page.html"
    main(["evaluate-reward", *words, "--output", str(output), "--overwrite"])
    data = json.loads(output.with_suffix(".json").read_text(), parse_constant=pytest.fail)
    return Reader(output.read_text()), data


def test_one_model_on_soft_labels(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--path", str(world / "rm0"), "--data", str(world / "pairs.jsonl")]
    page, data = page_of(world, *words, "--perturbed", "6")
    (found,) = data["models"]
    assert found["comparisons"] == found["pairs"] == 24
    assert found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"]
    assert found["subsets"].keys() == {HOSTILE, "b"}
    assert found["ceiling"]["best"] == pytest.approx(0.9)
    assert {each["rows"] for each in found["turned"].values()} == {6}
    assert found["turned"]["answers in the other order"]["turned"]["value"] == 0
    assert page.tags.count("script") == 3
    assert "img" not in page.tags
    text = "".join(page.texts)
    for heading in ("Beside the raters", "Calibration", "Biases", "Robustness", "most wrong"):
        assert heading in text
    assert text.count(HOSTILE) > 2
    assert "Choosing among answers" not in text
    said = capsys.readouterr().out
    assert f"accuracy {100 * found['accuracy']['value']:.1f}" in said
    assert said.endswith(f"{world / 'page.html'}\n")


def test_two_models_on_rankings(world: Path) -> None:
    both = ["--path", str(world / "rm0"), "--against", str(world / "rm1")]
    page, data = page_of(world, *both, "--data", str(world / "rankings.jsonl"), "--perturbed", "0")
    assert len(data["models"]) == 2
    found = data["difference"]
    assert found["rows"] == 10
    parts = ("both", "first_only", "second_only", "neither")
    assert sum(found[part] for part in parts) == 10
    assert found["accuracy"]["value"] == pytest.approx(
        data["models"][1]["accuracy"]["value"] - data["models"][0]["accuracy"]["value"]
    )
    assert len(data["models"][0]["best_of"]["picked"]) == 4
    text = "".join(page.texts)
    assert "Choosing among answers" in text
    assert "Beside the raters" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--path", "m"], "Give --data FILE or --source"),
        (["--data", "pairs.jsonl"], "Give --path MODEL or --judge"),
        (["--path", "nowhere", "--data", "pairs.jsonl"], "nowhere"),
        (["--path", "m", "--data", "pairs.jsonl", "--perturbed", "-1"], "--perturbed -1 must be"),
        (["--path", "m", "--data", "pairs.jsonl", "--output", "a.pdf"], "must end in .html"),
        (["--path", "m", "--data", "pairs.jsonl", "--layout", "odd"], "layout"),
    ],
)
def test_wrong_options_are_refused_before_work(
    world: Path,
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(world)
    with pytest.raises(SystemExit):
        main(["evaluate-reward", *words])
    assert said in capsys.readouterr().err
