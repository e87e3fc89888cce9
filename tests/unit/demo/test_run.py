"""The whole demo, tiny."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_rlhf.demo import DemoConfig, PolicyStage, RewardStage, SupervisedStage, run_demo
from lit_rlhf.demo.world_data import WorldData
from lit_rlhf.errors import FileError
from lit_rlhf.report.run_page import report_runs
from tests.unit.report.test_page import Reader

TINY = DemoConfig(
    supervised=SupervisedStage(demonstrations=64),
    reward=RewardStage(pairs=64, heldout_pairs=40),
    policy=PolicyStage(iterations=2, prompts=8, heldout_prompts=16),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], str]:
    output, text = tmp_path_factory.mktemp("demo"), io.StringIO()
    run_demo(output, 0, TINY, Console(file=io.StringIO()))
    summary = run_demo(
        output, 1, TINY, Console(file=text, width=120)
    )  # over the results of another run
    return output, summary, text.getvalue()


def test_what_is_no_demo_stays(tmp_path: Path) -> None:
    """Runs of one's own are called so, too: `runs/sft`."""
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "metrics.jsonl").touch()
    with pytest.raises(FileError, match=r"The demo .* holds no summary\.json"):
        run_demo(tmp_path, 0, TINY)
    assert [path.name for path in tmp_path.rglob("*")] == ["sft", "metrics.jsonl"]


def test_summary_has_what_is_promised(run: tuple[Path, dict[str, object], str]) -> None:
    output, summary, _ = run
    written = json.loads((output / "summary.json").read_text())
    assert written == {**summary, "config": written["config"]}
    assert {"accuracy", "bayes_accuracy"} <= written["reward_model"].keys()
    wanted = {"reward_before", "reward_after", "gold_before", "gold_after", "gold_max", "kl"}
    assert wanted <= written["ppo"].keys()
    assert written["seconds"] > 0
    assert written["seed"] == 1
    assert written["config"]["policy"]["iterations"] == 2


def test_earlier_results_are_replaced(run: tuple[Path, dict[str, object], str]) -> None:
    output, *_ = run
    rows = [
        json.loads(line) for line in (output / "ppo" / "samples.jsonl").read_text().splitlines()
    ]
    assert len([row for row in rows if row["stage"] == "train"]) == 2 * 8 * TINY.policy.num_samples
    assert not list(output.rglob("samples-*.jsonl"))


def test_exports_are_there(run: tuple[Path, dict[str, object], str]) -> None:
    output, *_ = run
    assert all(
        (output / stage / "export" / "config.json").is_file() for stage in ("sft", "reward", "ppo")
    )


def test_the_reward_model_is_judged_as_it_was_exported(
    run: tuple[Path, dict[str, object], str],
) -> None:
    export = run[0] / "reward" / "export"
    tokenizer, model = (
        AutoTokenizer.from_pretrained(export),
        AutoModelForSequenceClassification.from_pretrained(export),
    )

    def score(prompt: str, text: str) -> float:
        ids = [*tokenizer(f"{prompt} {text}")["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            return float(model(torch.tensor([ids])).logits)

    pairs = WorldData(seed=1).pairs(40, "heldout")
    prefers = [
        score(str(row["prompt"]), str(row["chosen"]))
        > score(str(row["prompt"]), str(row["rejected"]))
        for row in pairs
    ]
    assert json.loads((run[0] / "summary.json").read_text())["reward_model"][
        "accuracy"
    ] == pytest.approx(sum(prefers) / len(pairs))


def test_report_shows_the_numbers_of_the_run(run: tuple[Path, dict[str, object], str]) -> None:
    output, summary, _ = run
    page = Reader((output / "report.html").read_text())
    assert [address for address in page.addresses if not address.startswith("#")] == []
    beside = json.loads((output / "report.json").read_text())["How it went"]
    rows = [
        json.loads(line) for line in (output / "ppo" / "metrics.jsonl").read_text().splitlines()
    ]
    kl = [row["train/objective/kl"] for row in rows if row["stage"] == "train"]
    assert beside["KL to the initial policy"]["kl"]["y"] == kl
    proxy, gold = beside["Gold against proxy"]["after PPO"].values()
    assert sum(gold) / len(gold) == pytest.approx(summary["ppo"]["gold_after"])
    assert sum(proxy) / len(proxy) == pytest.approx(summary["ppo"]["reward_after"])
    assert len(page.specs) == 5
    assert f"{summary['ppo']['gap_closed']:.0%}" in page.texts


def test_the_stages_are_runs_that_can_be_reported(run: tuple[Path, dict[str, object], str]) -> None:
    output, *_ = run
    for stage in ("sft", "reward", "ppo"):
        page = Reader(report_runs([output / stage], output / f"{stage}.html").read_text())
        assert page.specs


def test_terminal_shows_table_and_samples(run: tuple[Path, dict[str, object], str]) -> None:
    text = run[2]
    assert "true utility of the policy" in text
    assert "before and after" in text
    assert "report.html" in text
