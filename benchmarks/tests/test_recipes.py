"""The recipes of the film reviews' reward model: options, pairing, temperature, frozen states, and a whole run."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.human_sentiment import frozen, recipe_arms, recipe_numbers, recipes
from benchmarks.human_sentiment.prepare import Recipe, build_rows, write_jsonl
from benchmarks.human_sentiment.raters import RatedPair
from benchmarks.human_sentiment.rows import PREFIX
from benchmarks.tests.test_human_sentiment import ADJECTIVES, sentences
from lit_rlhf.cli import main
from lit_rlhf.testing.models import write_tiny_model

LISTS = [
    {
        "prompt": PREFIX,
        "completions": [f" {word} {i}" for word in ADJECTIVES],
        "scores": [float(place + i) for place in range(8)],
    }
    for i in range(8)
]


@pytest.mark.parametrize("name", [*recipe_arms.ARMS, recipes.WHOLE])
def test_a_recipe_is_a_command_that_parses_and_differs_where_it_says(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = recipe_arms.ARMS.get(name)
    options = (
        arm.options(tmp_path, 5, 8) if arm else recipe_arms.whole_options(tmp_path / "root", 5)
    )
    words = recipe_arms.command(tmp_path / "root", tmp_path, options)
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--print_config"])
    shown = capsys.readouterr().out
    assert "runs/human_sentiment" not in shown
    found = yaml.safe_load(shown)
    model, data = found["model"]["init_args"], found["data"]["init_args"]
    assert found["seed_everything"] == model["seed"] == data["seed"] == 5
    assert model["backbone"]["lora"]["rank"] == 16
    assert data["max_completion_length"] == 96
    assert (
        model["loss"]["class_path"].split(".")[-1]
        == (arm or recipe_arms.ARMS["lists, soft"]).loss["class_path"]
    )
    steps = 2 if arm else recipe_arms.STEPS
    assert model["lr_scheduler"]["init_args"]["total_steps"] == steps
    callbacks = [each["class_path"].split(".")[-1] for each in found["trainer"]["callbacks"]]
    assert ("StopAfter" in callbacks) == (arm is None)
    assert "ExportModel" in callbacks


def test_arms_learn_from_the_same_sentences() -> None:
    texts = [
        {
            text
            for row in rows
            for text in row.get("completions", [row.get("chosen"), row.get("rejected")])
        }
        for rows in (arm.rows(LISTS) for arm in recipe_arms.ARMS.values())
    ]
    assert all(each == texts[0] for each in texts)
    soft = recipe_arms.ARMS["pairs, soft"].rows(LISTS)[0]
    assert soft.keys() == {"prompt", "chosen", "rejected", "p_chosen"}
    assert soft["p_chosen"] == pytest.approx(1 / (1 + math.exp(-1 / 0.82)))


def test_recipes_are_paired_seed_by_seed_on_far_pairs() -> None:
    pairs = [
        RatedPair((f"a{i}", f"b{i}"), (2, 2), (0, 0) if i < 8 else (2, 1), 0.9) for i in range(9)
    ]

    def scores(right: int) -> dict[str, float]:
        return {f"{side}{i}": (side == "a") == (i < right) for i in range(9) for side in "ab"}

    found = recipe_numbers.paired([scores(2), scores(4)], [scores(8), scores(4)], pairs[:8])
    assert found.seeds == [0.75, 0.0]
    assert found.difference.value == pytest.approx(0.375)
    assert found.p_values == [pytest.approx(2 / 2**6), 1.0]
    near = recipe_numbers.paired(
        [scores(2)], [scores(9)], [RatedPair(("a0", "b0"), (2, 2), (2, 1, 2), 0.6)]
    )
    assert math.isnan(near.difference.value)
    assert recipe_numbers.mean_scores([{"a": 1.0, "b": 2.0}, {"a": 3.0}]) == {"a": 2.0}


def test_the_temperature_undoes_what_scores_are_too_sure_of() -> None:
    scores = {
        text.strip(): 3 * rating / 0.82
        for row in LISTS
        for text, rating in zip(row["completions"], row["scores"], strict=True)
    }
    assert recipe_numbers.temperature(scores, LISTS) == pytest.approx(3, rel=1e-3)
    flat = recipe_numbers.numbers(
        {"a": 3.0, "b": 0.0}, [RatedPair(("a", "b"), (2, 2), (0, 0), 0.75)], 3 / math.log(3)
    )
    assert flat["ece_at_temperature"] == pytest.approx(0, abs=1e-6)
    assert flat["ece"] == pytest.approx(1 / (1 + math.exp(-3)) - 0.75, abs=1e-6)


@pytest.mark.parametrize("name", recipe_arms.ARMS)
def test_a_head_on_frozen_states_learns_what_the_lists_say(name: str) -> None:
    """States hold the rating in one of four features: the head finds it, and a soft label its scale."""
    draw = torch.Generator().manual_seed(0)

    class Known(frozen.States):
        def __init__(self) -> None:
            self.known = {}

        def of(self, texts: Sequence[str]) -> torch.Tensor:
            for text in texts:
                self.known.setdefault(text, torch.randn(4, generator=draw))
            return torch.stack([self.known[text] for text in texts])

    states, lists = Known(), []
    for i in range(60):
        texts = [f" {i} {place}" for place in range(8)]
        ratings = states.of([text.strip() for text in texts])[:, 2].tolist()
        lists.append({"prompt": PREFIX, "completions": texts, "scores": ratings})
    scored = frozen.fit_frozen(name, 0, states, lists[:40], lists[40:])
    texts = [text.strip() for row in lists[40:] for text in row["completions"]]
    found, true = torch.tensor([*scored(texts).values()]), states.of(texts)[:, 2]
    assert torch.corrcoef(torch.stack([found, true]))[0, 1] > 0.9


@pytest.mark.slow
def test_runs_that_are_there_are_kept_and_one_that_was_broken_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it on a tiny model: arms, the whole recipe and frozen states."""
    write_tiny_model(tmp_path / "sft" / "export", num_hidden_layers=max(frozen.LAYERS) + 2)
    for name, rows in build_rows(sentences(300), Recipe()).items():
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", rows)
    for module in (recipes, recipe_arms):
        monkeypatch.setattr(module, "USED", 24)
    monkeypatch.setattr(recipes, "FIRST_ROUND", 33)
    words = ["--root", str(tmp_path), "--arms", "lists, soft", "lists, hard", "--seeds", "0", "1"]
    words += ["--lists", "8", "--whole", "0", "--frozen", "0", "1", "--frozen-lists", "16"]
    recipes.main([*words, "--others"])
    file = tmp_path / "recipes" / "recipes.json"
    first = json.loads(file.read_text("utf-8"))
    assert first["trained"].keys() == {"lists, soft", "lists, hard", "whole"}
    assert first["trained"]["lists, hard"]["beside"] == "lists, soft"
    assert "| lists, hard, ensemble | 2 |" in capsys.readouterr().out
    trained: list[list[str]] = []

    def fit(words: list[str]) -> None:
        trained.append(words)
        main(words)

    monkeypatch.setattr(recipes, "lit_rlhf", fit)
    recipes.main([*words, "--others"])
    assert not trained
    whole = tmp_path / "recipes" / "whole-0"
    (whole / "export").rename(whole / "before")
    (whole / "scores.json").unlink()
    recipes.main([*words, "--others"])
    assert [each[-2:] for each in trained] == [["--ckpt_path", "last"]]
    assert json.loads(file.read_text("utf-8")) == first
