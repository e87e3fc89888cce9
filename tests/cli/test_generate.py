"""`lit-rlhf generate` with a reward: what is kept, and that the data modules read it."""

import json
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.cli import main
from lit_rlhf.cli.selection import Sample, keep_best, keep_pairs
from lit_rlhf.data import Demonstration, DemonstrationDataModule, FileSource, PreferenceDataModule
from lit_rlhf.testing import write_jsonl

ROWS = [
    {"prompt": f"how was the {word}? ", "answer": str(n)}
    for n, word in enumerate(["film", "book", "song"])
]
REWARD = ["--reward.class_path", "LengthReward", "--reward.init_args.unit", "characters"]


def generate(model: Path, tmp: Path, *words: str) -> list[dict[str, Any]]:
    prompts, output = write_jsonl(tmp / "prompts.jsonl", ROWS), tmp / "out.jsonl"
    sampling = ["--sampling.max_new_tokens", "40", "--num_samples", "24"]
    main(
        [
            "generate",
            "--model",
            str(model),
            "--prompts",
            str(prompts),
            "--output",
            str(output),
            *sampling,
            *words,
        ]
    )
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_best_of_n_keeps_the_highest_scores_and_trains(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    every = generate(tiny_model_dir, tmp_path, *REWARD)
    assert len(every) == 72
    assert all(row["score"] == len(row["response"]) for row in every)
    assert {row["finished"] for row in every} == {True, False}
    best = generate(tiny_model_dir, tmp_path, *REWARD, "--keep", "best", "--num_best", "2")
    wanted = []
    for row in ROWS:
        ended = [x for x in every if x["prompt"] == row["prompt"] and x["finished"]]
        ended.sort(key=lambda x: -x["score"])
        wanted += [{**row, "completion": x["response"], "score": x["score"]} for x in ended[:2]]
    assert len(best) > 3
    assert best == wanted
    data = DemonstrationDataModule(
        FileSource(str(tmp_path / "out.jsonl")),
        format=Demonstration(),  # without it, rows with scores are to be judged, not imitated
        tokenizer=str(tiny_model_dir),
        batch_size=2,
        invalid="error",
    )
    data.prepare_data()
    data.setup("fit")
    assert sum(len(batch["index"]) for batch in data.train_dataloader()) == len(best)


def test_rewards_read_the_columns_of_each_row(tiny_model_dir: Path, tmp_path: Path) -> None:
    function = tmp_path / "reward.py"
    function.write_text(
        "def of_column(responses, answer):\n    return [float(value) for value in answer]\n"
    )
    reward = [
        "--reward.class_path",
        "FunctionReward",
        "--reward.init_args.function",
        f"{function}:of_column",
    ]
    rows = generate(tiny_model_dir, tmp_path, *reward, "--batch_size", "2")
    assert [row["score"] for row in rows] == [float(row["answer"]) for row in rows]
    assert {row["score"] for row in rows} == {0.0, 1.0, 2.0}


def test_best_against_worst_is_preference_data(tiny_model_dir: Path, tmp_path: Path) -> None:
    pairs = generate(tiny_model_dir, tmp_path, *REWARD, "--keep", "pairs", "--seed", "1")
    assert pairs
    for row in pairs:
        assert (
            row["chosen_score"]
            == len(row["chosen"])
            > len(row["rejected"])
            == row["rejected_score"]
        )
    data = PreferenceDataModule(
        FileSource(str(tmp_path / "out.jsonl")),
        tokenizer=str(tiny_model_dir),
        batch_size=len(pairs),
        invalid="error",
    )
    data.prepare_data()
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert len(batch["p_chosen"]) == len(pairs)
    assert bool((batch["p_chosen"] > 0.5).all())


def test_selection() -> None:
    samples = [
        Sample("a", 1.0, True),
        Sample("b", 3.0, False),
        Sample("c", 1.0, True),
        Sample("d", 0.0, True),
    ]
    cut, same = [Sample("x", 9.0, False)], [Sample("e", 2.0, True), Sample("f", 2.0, True)]
    prompts = [({"prompt": "p"}, samples), ({"prompt": "q"}, cut), ({"prompt": "r"}, same)]
    best = keep_best(prompts)
    assert [(row["prompt"], row["completion"]) for row in best.rows] == [("p", "a"), ("r", "e")]
    assert best.without == 1
    assert [row["completion"] for row in keep_best(prompts, 3).rows] == ["a", "c", "d", "e", "f"]
    pairs = keep_pairs(prompts)
    assert pairs.without == 2
    (pair,) = pairs.rows
    assert (pair["chosen"], pair["rejected"]) == ("a", "d")
    assert pair["p_chosen"] == pytest.approx(0.7310586)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep", "best"], "give --reward"),
        ([*REWARD, "--keep", "best", "--num_best", "24"], "at least 25"),
        ([*REWARD, "--keep", "best", "--num_best", "0"], "at least"),
        ([*REWARD, "--keep", "pairs", "--num_samples", "1"], "at least 2"),
        (
            ["--reward.class_path", "ExactAnswerReward", "--reward.init_args.column", "solution"],
            "column 'solution'",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused(
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        generate(tiny_model_dir, tmp_path, *words)
    assert message in capsys.readouterr().err
