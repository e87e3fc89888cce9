"""`lit-rlhf generate` with a reward: what is kept, and that the data modules read it."""

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rlhf.cli import main, selection
from lit_rlhf.cli.generate import _templated
from lit_rlhf.cli.selection import Sample
from lit_rlhf.cli.unfinished import Unfinished
from lit_rlhf.data import Demonstration, DemonstrationDataModule, FileSource, PreferenceDataModule
from lit_rlhf.feedback import read_labelled_pairs
from lit_rlhf.files import read_lines
from lit_rlhf.models import precision
from lit_rlhf.testing import make_tokenizer, write_jsonl, write_tiny_model
from tests import warm
from tests.loopback import Answer, Request, serving

ROOT = Path(__file__).parents[2]
ROWS = [
    {"prompt": f"how was the {word}? ", "answer": str(n)}
    for n, word in enumerate(["film", "book", "song"])
]
REWARD = ["--reward.class_path", "LengthReward", "--reward.init_args.unit", "characters"]


def generate(model: Path, tmp: Path, *words: str) -> list[dict[str, Any]]:
    prompts, output = write_jsonl(tmp / "prompts.jsonl", ROWS), tmp / "out.jsonl"
    sampling = ["--sampling.max_new_tokens", "40", "--num_samples", "24", "--dtype", "float32"]
    main(
        [
            "generate",
            "--model",
            str(model),
            "--prompts",
            str(prompts),
            "--output",
            str(output),
            "--overwrite",
            *sampling,
            *words,
        ]
    )
    return read_lines(output)


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


def test_columns_of_the_rows_are_kept(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"prompt": "how was it? ", "response": "r", "score": 5, "score_before": 4, "chosen": "c"}
    file, output = write_jsonl(tmp_path / "own.jsonl", [own, own]), tmp_path / "out.jsonl"
    words = ["generate", f"--model={tiny_model_dir}", f"--prompts={file}", *REWARD]
    words += ["--sampling.max_new_tokens=40", "--num_samples=24", "--dtype=float32"]
    main([*words, f"--output={output}"])
    row = read_lines(output)[0]
    assert (row["response_before"], row["score_before"], row["score_before_before"]) == ("r", 4, 5)
    assert row["score"] == len(row["response"]) != 5
    assert "response as response_before, score as score_before_before" in capsys.readouterr().err
    main([*words, f"--output={output}", "--overwrite", "--keep=pairs"])
    row = read_lines(output)[0]
    assert (row["chosen_before"], row["response"], row["score"]) == ("c", "r", 5)
    with pytest.raises(SystemExit):
        main([*words, f"--output={file}"])
    assert "would replace" in capsys.readouterr().err
    assert read_lines(file) == [own, own]


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
    best, without = selection.keep(prompts, selection.best)
    assert [(row["prompt"], row["completion"]) for row in best] == [("p", "a"), ("r", "e")]
    assert without == 1
    three, _ = selection.keep(prompts, partial(selection.best, number=3))
    assert [row["completion"] for row in three] == ["a", "c", "d", "e", "f"]
    (pair,), without = selection.keep(prompts, selection.best_and_worst)
    assert without == 2
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


def test_a_template_asks_about_what_the_rows_hold(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    function = tmp_path / "asked.py"
    function.write_text(
        "def asked(prompts, answer):\n"
        "    return [float(f'Row {a} says {a}.' in p) for p, a in zip(prompts, answer)]\n"
    )
    reward = ["--reward.class_path", "FunctionReward", "--reward.function", f"{function}:asked"]
    words = [
        "--prompt_template",
        "Row {{ number }} says {{ answer }}.",
        "--response_column",
        "said",
    ]
    every = generate(tiny_model_dir, tmp_path, *reward, *words)
    assert {row["score"] for row in every} == {1.0}
    assert [row["prompt"] for row in every[::24]] == [row["prompt"] for row in ROWS]
    ended = generate(tiny_model_dir, tmp_path, *reward, *words, "--keep", "finished")
    assert ended == [row for row in every if row["finished"]]
    assert 0 < len(ended) < len(every)
    assert all("said" in row and "response" not in row for row in every)
    with pytest.raises(SystemExit):
        generate(tiny_model_dir, tmp_path, "--prompt_template", "{{ nothing }}")
    assert "template of --prompt_template fails: 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("write", [list, json.dumps, str])
def test_a_template_writes_out_conversations_though_they_are_held_as_text(
    write: Callable[[Any], Any],
) -> None:
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    rows = [{"talk": write(turns)}]
    source = _templated(rows, "prompt", "Sum up: {{ talk }}", make_tokenizer())
    asked = next(iter(source.load()))["prompt"]
    assert asked == [{"role": "user", "content": "Sum up: user: Hi.\n\nassistant: Hello."}]


def test_samples_are_set_against_the_rows_own_answers(tiny_model_dir: Path, tmp_path: Path) -> None:
    words = ["--keep", "self_play", "--completion_column", "answer"]
    pairs = generate(tiny_model_dir, tmp_path, *words)
    shown = {row["prompt"]: row["answer"] for row in ROWS}
    assert {row["prompt"] for row in pairs} == set(shown)
    assert all(row["chosen"] == shown[row["prompt"]] != row["rejected"] for row in pairs)
    assert all(set(row) == {"prompt", "chosen", "rejected"} for row in pairs)


def test_candidates_are_different_answers_that_a_judge_reads(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = generate(tiny_model_dir, tmp_path, "--keep", "candidates")
    assert all(len(set(row["completions"])) == len(row["completions"]) > 1 for row in rows)
    pairs, dropped = read_labelled_pairs(FileSource(str(tmp_path / "out.jsonl")))
    counts = [len(row["completions"]) for row in rows]
    assert (len(pairs), dropped) == (sum(n * (n - 1) // 2 for n in counts), 0)


def test_the_kl_to_another_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=7)
    same = generate(tiny_model_dir, tmp_path, "--reference", str(tiny_model_dir))
    assert all(abs(row["kl"]) < 1e-4 for row in same)
    rows = generate(tiny_model_dir, tmp_path, "--reference", str(other))
    assert [row["response"] for row in rows] == [row["response"] for row in same]
    assert sum(row["kl"] for row in rows) / len(rows) > 0.01
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for path in (tiny_model_dir, other)
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    greedy = generate(
        tiny_model_dir, tmp_path, "--reference", str(other), "--sampling.max_new_tokens", "1"
    )
    checked = 0
    for row in greedy:
        prompt = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
        token = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        if len(token) != 1 or tokenizer.decode(token) != row["response"]:
            continue  # half a character, which no text gives back
        with torch.no_grad():
            ours, theirs = (m(prompt).logits[0, -1].log_softmax(-1) for m in (policy, reference))
        assert row["kl"] == pytest.approx(float(ours[token[0]] - theirs[token[0]]), abs=1e-4)
        checked += 1
    assert checked > 5


KILLED_REWARD = """
import os, pathlib, signal
HERE = pathlib.Path(__file__).parent

def length(prompts, responses):
    with (HERE / "scored.txt").open("a") as file:
        file.writelines(prompt + "\\n" for prompt in prompts)
    count = len((HERE / "scored.txt").read_text().splitlines())
    if (HERE / "kill").exists() and count == 2 * 24:
        (HERE / "kill").unlink()
        END
    return [float(len(text)) for text in responses]
"""


@pytest.mark.parametrize(
    "end",
    [
        "raise RuntimeError('stop')",
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", marks=pytest.mark.slow),
    ],
    ids=["error", "kill"],
)
def test_killed_it_goes_on_behind_its_last_batch(
    tiny_model_dir: Path, tmp_path: Path, end: str
) -> None:
    reward = tmp_path / "reward.py"
    reward.write_text(KILLED_REWARD.replace("END", end))
    words = ["--reward.class_path", "FunctionReward", "--reward.function", f"{reward}:length"]
    words += ["--batch_size", "1"]
    whole = generate(tiny_model_dir, tmp_path, *words)
    assert not list(tmp_path.glob(".*.unfinished"))
    for name in ("out.jsonl", "scored.txt"):
        (tmp_path / name).unlink()
    (tmp_path / "kill").touch()
    call = f"from tests.cli.test_generate import generate, Path; generate(Path({str(tiny_model_dir)!r}), "
    call += f"Path({str(tmp_path)!r}), *{words!r})"
    done = subprocess.run([warm.python(), "-c", call], cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == (-9 if "SIGKILL" in end else 1), done.stderr
    assert not (tmp_path / "out.jsonl").exists()
    (left,) = tmp_path.glob(".*.unfinished")
    with left.open("a") as file:
        file.write('{"request": "torn')
    assert generate(tiny_model_dir, tmp_path, *words) == whole
    assert not left.exists()
    scored = Counter((tmp_path / "scored.txt").read_text().splitlines())
    assert sorted(scored.values()) == [24, 24, 48], (
        "what was in work at the end, and no other, comes again"
    )


def test_another_request_begins_anew(tiny_model_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    Unfinished(output, "another").add({0: [asdict(Sample("x", 1.0, True))]})
    rows = generate(tiny_model_dir, tmp_path)
    assert len(rows) == 72
    assert "x" not in {row["response"] for row in rows}
    assert not list(tmp_path.glob(".*.unfinished"))


def test_scores_of_two_reward_servers_are_not_mixed(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one answers at the same address, after the first failed behind a batch."""
    weights, value, left = "rules 1", 1.0, 1

    def serve(request: Request) -> Answer:
        nonlocal left
        if request.path == "/health":
            return Answer({"weights": weights})
        left -= 1
        scores = [[value] * len(each["completions"]) for each in request.body["prompts"]]
        return Answer({"scores": scores} if left >= 0 else None, 200 if left >= 0 else 422)

    with serving(serve) as server:
        words = ["--reward", "HTTPReward", "--reward.urls", server.url, "--batch_size", "1"]
        with pytest.raises(SystemExit):
            generate(tiny_model_dir, tmp_path, *words)
        assert "Raised by HTTPReward, while it scored 24" in (said := capsys.readouterr().err)
        assert "--ckpt_path" not in said  # which is of a run
        weights, value, left = "rules 2", 2.0, 3
        rows = generate(tiny_model_dir, tmp_path, *words)
    assert {row["score"] for row in rows} == {2.0}


def test_dates_of_a_directory_of_datasets_are_written_as_text(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = datasets.Dataset.from_list([{**ROWS[0], "at": date(2026, 1, 2)}])
    rows.save_to_disk(str(tmp_path / "prompts"))
    output = tmp_path / "out.jsonl"
    main(
        [
            *("generate", "--model", str(tiny_model_dir), "--prompts", str(tmp_path / "prompts")),
            *("--output", str(output), "--sampling.max_new_tokens", "4"),
        ]
    )
    row = json.loads(output.read_text())
    assert row["at"] == "2026-01-02"
    assert row.keys() == {*ROWS[0], "at", "response"}


def test_bytes_are_refused_before_anything_is_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = datasets.Dataset.from_list([{**ROWS[0], "raw": b"\x00"}])
    rows.save_to_disk(str(tmp_path / "prompts"))
    with pytest.raises(SystemExit):
        main(["generate", "--model", "none", "--prompts", str(tmp_path / "prompts")])
    assert (
        "row 1: column 'raw' can't be written as JSONL: it holds bytes" in capsys.readouterr().err
    )


def test_the_dtype_is_the_devices_own(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "_say", lambda log, text: said.append(text))
    words = ["--sampling.max_new_tokens", "2"]
    main(["generate", "--model", str(tiny_model_dir), "--prompt", "how was it? ", *words])
    assert {*said} == {"dtype: auto takes bfloat16: this CPU multiplies bfloat16."}


def test_prompts_that_cannot_be_used_are_left_out_when_told(
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = [{"prompt": "", "id": 0}, {"prompt": "how was it? ", "id": 1}, {"prompt": 3, "id": 2}]
    data, output = write_jsonl(tmp_path / "asked.jsonl", asked), tmp_path / "out.jsonl"
    words = ["generate", "--model", str(tiny_model_dir), "--prompts", str(data)]
    words += ["--sampling.max_new_tokens", "4", "--output", str(output)]
    with pytest.raises(SystemExit):
        main(words)
    assert "set invalid: drop" in capsys.readouterr().err
    main([*words, "--invalid", "drop"])
    assert [row["id"] for row in read_lines(output)] == [1]
    assert "1 of 3 rows used; 1 left out" in caplog.text
