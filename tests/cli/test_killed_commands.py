"""`generate`, `score` and `label`, killed before each change of a file: the same command makes the same output."""

import signal
import subprocess
from collections import Counter
from itertools import count
from pathlib import Path

import pytest

from lit_rlhf.testing import write_jsonl
from tests.cli.test_score import export
from tests.killed import start
from tests.walks import walk

ROWS = [
    {"prompt": f"how was number {i}? ", "completion": "good " * (i % 4), "rejected": f"bad, {i}"}
    for i in range(2)
]
PAIRS = [
    {"prompt": row["prompt"], "chosen": "it was good", "rejected": row["rejected"]} for row in ROWS
]
REWARD = """
def length(prompts, responses):
    with open("scored.txt", "a") as file:
        file.writelines(prompt + "\\n" for prompt in prompts)
    return [float(len(text)) for text in responses]
"""
COMMANDS = {
    "generate": "--model model --prompts rows.jsonl --sampling.max_new_tokens 8 --batch_size 1 "
    "--reward FunctionReward --reward.function reward.py:length --dtype float32",
    "score": "--model scorer --data rows.jsonl --batch_size 1",
    "label": "pairs.jsonl --judge LocalJudge --judge.backbone.name model --summary out.json "
    "--judge.template {{prompt}}{{first}}{{second}}",
}


@pytest.mark.timeout(900)  # some thirty processes
@pytest.mark.parametrize("command", walk(COMMANDS))
def test_killed_before_any_change_it_goes_on(
    command: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    if command == "score":
        export(tiny_model_dir, tmp_path / "scorer")
    (tmp_path / "model").symlink_to(tiny_model_dir)

    def started(number: int, before: int) -> "tuple[Path, subprocess.CompletedProcess[str]]":
        place = tmp_path / str(number)
        place.mkdir(exist_ok=True)
        for name in ("model", "scorer"):
            (place / name).unlink(missing_ok=True)
            (place / name).symlink_to(tmp_path / name)
        write_jsonl(place / "rows.jsonl", ROWS)
        write_jsonl(place / "pairs.jsonl", PAIRS)
        (place / "reward.py").write_text(REWARD)
        words = [command, *COMMANDS[command].split(), "--output", "out.jsonl"]
        done = start(place, rf"\S+ {place}/", before, *words)
        assert done.returncode == 0 or (before and done.returncode == -signal.SIGKILL), done.stdout
        return place / "out.jsonl", done

    whole = started(0, before=0)[0].read_bytes()
    for number in count(1):
        output, done = started(number, before=number)
        if done.returncode == 0:
            break
        assert not output.exists() or output.read_bytes() == whole, number
        if not output.exists():  # else all is done, and a second call would be refused
            started(number, before=0)
            assert output.read_bytes() == whole, number
            assert not [*output.parent.glob(".*")], number
        if command == "generate":
            scored = Counter((output.parent / "scored.txt").read_text().splitlines())
            assert len(scored) == len(ROWS), number
            assert scored.total() <= len(ROWS) + 1, "what was in work, and no other, comes again"
    assert number > 6
