"""`lit-rlhf fit` whose reward is a server that fails in mid-run: what is said, and that the run goes on."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.cli import main
from lit_rlhf.testing.tiny import write_tiny_world
from tests import warm
from tests.loopback import Answer, Request, serving
from tests.unit.rewards.test_remote import Served, export
from tests.walks import walk

CONFIGS = Path(__file__).parents[2] / "configs"
WORDS = ["fit", "-c", str(CONFIGS / "policy/grpo_lora.yaml")]
WORDS += ["-c", str(CONFIGS / "overlays/tiny.yaml"), "-c", "run.yaml"]
RUN = """
trainer:
  max_epochs: 3
  limit_train_batches: 1
  callbacks:
    - SampleTable
    - {class_path: IterationCheckpoint, init_args: {every_n_iterations: 1}}
model: {init_args: {reward: {class_path: HTTPReward, init_args: {retries: 1, timeout: 1.0}}}}
"""
RESUME = "The run goes on from its last checkpoint with --ckpt_path last."
FAILURES = {
    "few": (lambda right: Answer({"scores": right[:-1]}), "one for each of its completions"),
    "nan": (
        lambda right: Answer({"scores": [[float("nan")] * len(right[0])] * len(right)}),
        "a list of finite numbers",
    ),
    "slow": (
        lambda right: Answer({"scores": right}, delay=3.0),
        "timeout=1.0 seconds (raise timeout",
    ),
    "gone": (lambda right: Answer({"scores": right}, cut=True), "can't be reached"),
    "other": (
        lambda right: Answer({"scores": right, "weights": "rules 2"}),
        "the model that it had then",
    ),
}


@pytest.mark.parametrize("kind", walk(FAILURES, "few"))
def test_a_server_that_fails_in_mid_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_world("data", rows=12)
    Path("run.yaml").write_text(RUN)
    answer, said = FAILURES[kind]
    fails, asked = False, 0

    def serve(request: Request) -> Answer:
        nonlocal asked
        if request.path == "/health":
            return Answer({"weights": "rules 1"})
        prompts, asked = request.body["prompts"], asked + 1
        right = [[-float(len(text)) for text in each["completions"]] for each in prompts]
        return answer(right) if fails and asked > 3 else Answer({"scores": right})

    def fit(run: str, *words: str) -> None:
        main([*WORDS, "--run_dir", run, "--model.reward.urls", server.url, *words])

    def samples(run: str) -> list[Any]:
        return [json.loads(line) for line in Path(run, "samples.jsonl").read_text().splitlines()]

    with serving(serve) as server:
        fit("whole")
        fails, asked = True, 0
        with pytest.raises(SystemExit) as stop:
            fit("stopped")
        told = capsys.readouterr().err
        assert stop.value.code == 2
        assert said in told and RESUME in told and "Traceback" not in told, told
        fails = False
        fit("stopped", "--ckpt_path", "last")
    assert samples("stopped") == samples("whole")


@pytest.mark.walk
def test_a_server_that_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path
) -> None:
    """The run waits for it, and ends as if nothing had been; it doesn't go on by another model."""
    monkeypatch.chdir(tmp_path)
    write_tiny_world("data", rows=12)
    Path("run.yaml").write_text(RUN.replace("max_epochs: 3", "max_epochs: 12"))
    rewards = [str(export(tiny_model_dir, tmp_path / str(seed), seed)) for seed in (1, 2)]

    def fit(run: str, url: str) -> "subprocess.Popen[str]":
        words = [*WORDS, "--run_dir", run, "--model.reward.retries", "9"]
        command = [warm.python(), "-m", "lit_rlhf", *words, "--model.reward.urls", url]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    server = Served(Path(rewards[0]))
    whole = fit("whole", server.url)
    told = whole.communicate(timeout=120)[1]
    assert whole.returncode == 0, told
    for again, status, said in ((rewards[0], 0, ""), (rewards[1], 2, "the model that it had then")):
        run = fit(f"by-{Path(again).name}", server.url)
        while not list(Path(f"by-{Path(again).name}").glob("checkpoints/*")):
            assert run.poll() is None
        server.end(warm.KILL)
        server = Served(Path(again), "--port", server.url.rpartition(":")[2])
        told = run.communicate(timeout=120)[1]
        assert run.returncode == status and said in told, told
    server.end(signal.SIGINT)
    assert Path("by-1/samples.jsonl").read_text() == Path("whole/samples.jsonl").read_text()
