"""`lit-rlhf validate` of a reward model on rows that name subsets: the page of `evaluate-reward`, of the same rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.cli.training import TrainingCLI, start
from lit_rlhf.testing import tiny_preferences, write_jsonl

PAIRS = [{**row, "subset": "ab"[n % 3 == 0]} for n, row in enumerate(tiny_preferences(24))]
RATED = [
    {"prompt": row["prompt"], "response": row[side], "helpfulness": h, "verbosity": 1}
    | {"subset": row["subset"]}
    for row in PAIRS
    for side, h in (("chosen", 4), ("rejected", 1))
]
BOTH = {"class_path": "HelpSteer2Pairs", "init_args": {"attributes": ["helpfulness", "verbosity"]}}


def validate(
    path: Path,
    model: Path,
    data: dict[str, Any],
    loss: dict[str, Any] | None = None,
    **trainer: Any,
) -> dict[str, float]:
    """What was logged."""
    options = {"tokenizer": str(model), "batch_size": 4, "cache_dir": str(path / "cache")}
    module: dict[str, Any] = {"backbone": {"name": str(model)}, "loss": loss}
    config = {
        "run_dir": str(path / "run"),
        "trainer": {
            "logger": False,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            **trainer,
        },
        "model": {"class_path": "RewardModelModule", "init_args": module},
        "data": {"class_path": "PreferenceDataModule", "init_args": {**options, **data}},
    }
    (path / "run.yaml").write_text(json.dumps(config))
    cli = start(TrainingCLI, ["validate", "-c", str(path / "run.yaml")])
    return {name: float(value) for name, value in cli.trainer.callback_metrics.items()}


def of_file(path: Path) -> dict[str, Any]:
    return {"class_path": "FileSource", "init_args": {"path": str(path)}}


@pytest.mark.parametrize(
    ("rows", "options", "loss"),
    [
        (PAIRS, {}, None),
        (PAIRS, {"val_fraction": 0.4}, None),
        (PAIRS, {}, {"class_path": "HeadEnsemble", "init_args": {"members": 2}}),
        (
            RATED,
            {"format": BOTH},
            {"class_path": "Attributes", "init_args": {"weights": [1, -0.5]}},
        ),
        (
            RATED,
            {"format": BOTH},
            {"class_path": "GatedAttributes", "init_args": {"attributes": 2}},
        ),
    ],
    ids=["pairs", "a part of the training rows", "ensemble", "attributes", "gated"],
)
def test_the_page_has_the_accuracies_that_were_logged(
    rows: Any, options: dict[str, Any], loss: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    source = of_file(write_jsonl(tmp_path / "rows.jsonl", rows))
    side = "train" if "val_fraction" in options else "val"
    logged = validate(tmp_path, tiny_model_dir, {side: source, **options}, loss)
    numbers = json.loads((tmp_path / "run" / "reward.json").read_text())["models"][0]
    assert set(numbers["subsets"]) == {"a", "b"}
    for name, found in numbers["subsets"].items():
        assert found["accuracy"]["value"] == pytest.approx(logged[f"val/accuracy/{name}"])
    assert numbers["accuracy"]["value"] == pytest.approx(logged["val/accuracy"])
    assert numbers["margin"]["value"] == pytest.approx(logged["val/margin"], abs=1e-5)
    assert (numbers["comparisons"] < 24) == (side == "train")
    assert (numbers["doubt"] is not None) == (loss is not None and "members" in loss["init_args"])
    assert "lit-rlhf validate" in (tmp_path / "run" / "reward.html").read_text()


def test_what_has_no_subset_has_no_page(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", tiny_preferences(8))
    validate(tmp_path, tiny_model_dir, {"val": of_file(rows)})
    assert not (tmp_path / "run" / "reward.html").exists()


def test_each_evaluation_adds_a_line(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = of_file(write_jsonl(tmp_path / "rows.jsonl", tiny_preferences(8)))
    logged = validate(tmp_path, tiny_model_dir, {"val": rows, "test": rows})
    start(TrainingCLI, ["test", "-c", str(tmp_path / "run.yaml"), "--trainer.limit_test_batches=2"])
    start(TrainingCLI, ["test", "-c", str(tmp_path / "run.yaml"), "--trainer.fast_dev_run=true"])
    lines = (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
    of_val, of_test = map(json.loads, lines)
    assert {name: of_val[name] for name in logged} == logged
    assert (of_val["stage"], of_val["ckpt_path"]) == ("validate", None)
    assert of_test["stage"] == "test"
    assert of_test["test/loss"] == pytest.approx(logged["val/loss"])
    assert of_test["command"].endswith("--trainer.limit_test_batches=2")


def test_a_mixture_is_told_where_to_look(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    portions = [{"path": str(write_jsonl(tmp_path / "rows.jsonl", PAIRS))}]
    mixture = {"class_path": "Mixture", "init_args": {"portions": portions}}
    assert "val/accuracy/a" in validate(tmp_path, tiny_model_dir, {"val": mixture})
    assert "lit-rlhf evaluate-reward` the checkpoint" in capsys.readouterr().out


LONG = [{**row, "prompt": 400 * str(row["prompt"])} for row in PAIRS]
VOTED = [{**row, "p_chosen": 0.9, "votes": "many"} for row in PAIRS]
CUT = {"max_prompt_length": 32, "max_completion_length": 16, "too_long": "truncate"}


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [(LONG, CUT, "longer than the model reads"), (VOTED, {}, "column 'votes' is no number")],
    ids=["only cut rows fit", "votes that are none"],
)
def test_a_page_that_fails_leaves_the_validation_as_it_is(
    rows: Any,
    options: dict[str, Any],
    said: str,
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = of_file(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert "val/accuracy/a" in validate(tmp_path, tiny_model_dir, {"val": source, **options})
    assert said in capsys.readouterr().out
    assert not (tmp_path / "run" / "reward.html").exists()


@pytest.mark.parametrize("limit", [1, 0.5])
def test_a_part_of_the_batches_has_no_page(
    limit: float, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = of_file(write_jsonl(tmp_path / "rows.jsonl", PAIRS))
    validate(tmp_path, tiny_model_dir, {"val": source}, limit_val_batches=limit)
    assert "of all batches" in capsys.readouterr().out
    assert not (tmp_path / "run" / "reward.html").exists()
