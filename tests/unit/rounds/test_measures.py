"""Measures of rounds are of one evaluation: other options are refused before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.files import read_lines
from lit_rlhf.rounds import Evaluation, RejectionSampling, Rounds, Training
from lit_rlhf.rounds.evaluation import measure
from lit_rlhf.testing import write_jsonl
from lit_rlhf.testing.tiny import write_tiny_world
from tests.unit.rounds.test_rounds import LENGTH, PROMPTS, SAMPLE, Counting

WORDS = {"class_path": "LengthReward", "init_args": {"unit": "words"}}


def rounds(evaluation: Evaluation | None, run_dir: str = "runs/loop", **options: Any) -> list[str]:
    """Which commands one round runs."""
    training = Training(["sft/lora", "overlays/tiny"], {"data": {"init_args": {"cache_dir": "c"}}})
    method = RejectionSampling("own.jsonl", LENGTH, 16, 1, training, SAMPLE)
    runner = Counting()
    Rounds("data/tiny-model", method, run_dir, 1, evaluation, runner=runner, **options).run()
    return runner.ran


def test_measures_of_other_options_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_world("data", rows=6)
    write_jsonl("own.jsonl", prompts := read_lines(Path(PROMPTS)))
    first = Evaluation(PROMPTS, LENGTH, 2, SAMPLE)
    assert rounds(first) == ["generate", "generate", "fit", "generate"]
    record = Path("runs/loop/rounds.json").read_text()
    seed = {"seed": 1}
    for evaluation, options, said in [
        (Evaluation(PROMPTS, LENGTH, 1, SAMPLE), {}, "num_samples was 2, is 1"),
        (Evaluation(PROMPTS, WORDS, 2, SAMPLE), {}, "unit was 'characters', is 'words'"),
        (Evaluation("own.jsonl", LENGTH, 2, SAMPLE), {}, "prompts was 'data/prompts.jsonl', is"),
        (first, seed, "seed was 0, is 1"),
    ]:
        with pytest.raises(
            ConfigurationError, match=rf"evaluation\.jsonl was measured with.*{said}"
        ):
            rounds(evaluation, **options)
    write_jsonl(PROMPTS, prompts[1:])
    with pytest.raises(ConfigurationError, match=r"data/prompts\.jsonl holds other rows"):
        rounds(first)
    write_jsonl(PROMPTS, prompts)
    assert Path("runs/loop/rounds.json").read_text() == record
    assert rounds(first) == []
    stderr = measure(Path("runs/loop/round-00"))["score_stderr"]
    assert rounds(None) == []
    told = json.loads(Path("runs/loop/rounds.json").read_text())["rounds"]["0"]["measures"]
    assert told["score_stderr"] == stderr  # of prompts, still
    Path("runs/loop").rename("runs/moved")
    assert rounds(first, "runs/moved") == []
    for result in Path("runs/moved").glob("*/evaluation.jsonl"):  # as the refusal says
        result.unlink()
    assert rounds(Evaluation(PROMPTS, WORDS, 1, SAMPLE), "runs/moved") == ["generate", "generate"]
