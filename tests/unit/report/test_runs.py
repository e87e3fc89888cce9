"""Reports of real runs, tiny ones: what the page shows is what the run wrote."""

import json
import re
import shutil
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import yaml
from scipy import stats

from lit_rlhf.cli import main
from lit_rlhf.errors import DataError
from lit_rlhf.report.curves import Group
from lit_rlhf.report.run_page import report_runs
from lit_rlhf.report.runs import read_runs, settled_options
from lit_rlhf.testing.tiny import write_tiny_world
from tests.unit.report.test_page import HOSTILE, Reader

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two PPO runs that differ in the coefficient of the KL."""
    root = tmp_path_factory.mktemp("runs")
    write_tiny_world(root / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, more in (("a", []), ("b", ["--model.kl.coef", "0.5"])):
            files = [CONFIGS / "policy" / "ppo_lora.yaml", CONFIGS / "overlays" / "tiny.yaml"]
            words = [word for file in files for word in ("-c", str(file))]
            words += [
                "--model.reward",
                "LengthReward",
                "--trainer.limit_train_batches",
                "3",
                "--model.sampling.max_new_tokens",
                "6",
            ]
            main(["fit", *words, "--run_dir", f"runs/{name}", *more])
    return root / "runs"


@pytest.fixture
def runs(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "runs"))


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def report(paths: list[Path], output: Path) -> tuple[Reader, dict]:
    page = report_runs(paths, output)
    return Reader(page.read_text()), json.loads(page.with_suffix(".json").read_text())


def test_curves_are_the_metrics_of_the_run(runs: Path) -> None:
    page, beside = report([runs / "a"], runs / "report.html")
    written = rows_of(runs / "a" / "metrics.jsonl")
    kl = [row["train/objective/kl"] for row in written if row["stage"] == "train"]
    assert len(kl) == 3
    assert beside["runs"]["a"]["train/objective/kl"] == {
        "iteration": [1, 2, 3],
        "value": kl,
    }
    drawn = [
        [row["y"] for row in spec["data"]["values"] if row.get("s") == "training"]
        for spec in page.specs
        if "values" in spec.get("data", {})
    ]
    assert kl in drawn
    text = " ".join(page.texts)
    for told in ("KL and entropy", "Time and memory", "lit-rlhf fit", "finished", "transformers"):
        assert told in text


def test_samples_of_a_policy_are_shown_as_text(runs: Path) -> None:
    file = runs / "a" / "samples.jsonl"
    rows = rows_of(file)
    assert rows
    for row in rows:
        row["prompt"], row["response"] = "the prompt", HOSTILE
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page, _ = report([runs / "a"], runs / "report.html")
    assert HOSTILE in page.texts
    assert page.tags.count("script") == 3
    assert "img" not in page.tags


def test_options_that_differ_are_named_with_both_values(runs: Path) -> None:
    page, beside = report([runs / "a", runs / "b"], runs / "report.html")
    assert beside["options_that_differ"] == {"model.kl.coef": {"a": 0.05, "b": 0.5}}
    assert "≠" in page.texts
    overlaid = {
        row["s"] for spec in page.specs for row in spec["data"].get("values", []) if "k" in row
    }
    assert {"a", "b"} <= overlaid


def seeded(run: Path, seed: int) -> Path:
    """The same run as if it had another seed: its numbers are moved by it."""
    other = Path(shutil.copytree(run, run.with_name(f"{run.name}{seed}")))
    (config,) = other.rglob("config.yaml")
    config.write_text(re.sub(r"(?m)^(\s*seed): \d+$", rf"\1: {seed}", config.read_text()))
    rows = [
        row | {"train/loss/value_avg": row.get("train/loss/value_avg", 0) + seed}
        for row in rows_of(other / "metrics.jsonl")
    ]
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return other


def test_one_more_callback_is_the_one_difference() -> None:
    def callbacks(*classes: str) -> dict[str, Any]:
        listed = [{"class_path": f"lit_rlhf.callbacks.{each}"} for each in classes]
        return settled_options(yaml.safe_dump({"trainer": {"callbacks": listed}}))

    few, more = callbacks("A", "B", "B"), callbacks("C", "A", "B", "B")
    name = "trainer.callbacks.C.class_path"
    assert more == {**few, name: "lit_rlhf.callbacks.C"}
    assert len(few) == 3


def test_runs_that_differ_by_seed_alone_are_one_with_a_band(runs: Path) -> None:
    paths = [runs / "a", *(seeded(runs / "a", seed) for seed in (1, 2, 3)), runs / "b"]
    page, _ = report(paths, runs / "report.html")
    assert "a and 3 more seeds" in page.texts
    drawn = [spec["data"].get("values", []) for spec in page.specs]
    (values,) = [
        rows for rows in drawn if any(row.get("high", 0) - row.get("low", 0) > 2.9 for row in rows)
    ]
    assert {row["s"] for row in values} == {"a and 3 more seeds", "b"}
    first, *others = read_runs(paths[:4])
    end = Group("a", [first, *others]).final("train/loss/value_avg")
    ends = [run.curve("train/loss/value_avg")[1][-1] for run in (first, *others)]
    low, high = stats.t.interval(0.95, 3, sum(ends) / 4, stdev(ends) / 2)
    assert end == pytest.approx((sum(ends) / 4, (high - low) / 2), rel=1e-3)


def test_damaged_lines_are_counted_and_the_rest_is_shown(runs: Path) -> None:
    file = runs / "a" / "metrics.jsonl"
    file.write_bytes(
        file.read_bytes() + b'{"iteration": 4, "train/lo\n[1]\n\xff\xfe\n{"iteration": "x"}\n'
    )
    (runs / "a" / "run.json").write_text("{")
    page, beside = report([runs / "a"], runs / "report.html")
    assert "4 lines of metrics.jsonl can't be read and are left out." in page.texts
    assert "1 lines of run.json can't be read and are left out." in page.texts
    assert beside["runs"]["a"]["train/objective/kl"]["iteration"] == [1, 2, 3]


def test_a_run_that_failed_says_so_in_front(runs: Path) -> None:
    file = runs / "a" / "run.json"
    record = json.loads(file.read_text())
    record["starts"][-1] |= {"state": "failed", "reason": "PolicyCollapsedError: the KL is 99"}
    record["starts"][-1]["events"] = [{"iteration": 2, "text": "responses repeat themselves"}]
    file.write_text(json.dumps(record))
    page, _ = report([runs / "a"], runs / "report.html")
    assert any(
        "failed after iteration 3. PolicyCollapsedError: the KL is 99" in text
        for text in page.texts
    )
    assert "responses repeat themselves" in page.texts


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "isn't there: give the directory of a run"),
        (lambda path: path.write_text(""), "is a file: give the directory of a run"),
        (lambda path: path.mkdir(), "holds no metrics.jsonl"),
        (
            lambda path: (path.mkdir(), (path / "metrics.jsonl").write_text("")),
            "has no metrics yet",
        ),
        (
            lambda path: (path.mkdir(), (path / "metrics.jsonl").write_text("{")),
            "1 lines that can't be read",
        ),
        (
            lambda path: (
                (path / "ppo").mkdir(parents=True),
                (path / "ppo" / "metrics.jsonl").touch(),
            ),
            "Runs below it: ",
        ),
    ],
    ids=["missing", "file", "empty", "no lines", "no whole line", "above"],
)
def test_what_is_no_run_is_refused(tmp_path: Path, make, said: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(DataError, match=said):
        report_runs([tmp_path / "x"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ({"state": "running", "ended": None}, "if the run was killed, start it again"),
        (
            {"state": "interrupted", "ended": "2026-01-01", "reason": "KeyboardInterrupt"},
            r"ended before it \(interrupted: KeyboardInterrupt\)",
        ),
    ],
)
def test_a_run_that_ended_before_its_first_iteration(
    tmp_path: Path, start: dict[str, Any], said: str
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"starts": [start]}))
    (tmp_path / "config.yaml").write_text("trainer: {callbacks: [{class_path: MetricsFile}]}")
    with pytest.raises(DataError, match=f"has no metrics yet: .*{said}"):
        report_runs([tmp_path], tmp_path / "report.html")
    (tmp_path / "config.yaml").write_text("trainer: {callbacks: []}")
    with pytest.raises(DataError, match="by the callback MetricsFile"):
        report_runs([tmp_path], tmp_path / "report.html")


def test_command_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(runs / "a")])
    assert capsys.readouterr().out == f"{runs / 'a' / 'report.html'}\n"
    main(["report", str(runs / "a"), str(runs / "b"), "--output", str(runs / "both.html")])
    assert (runs / "both.html").is_file()
    with pytest.raises(SystemExit):
        main(["report", str(runs / "a"), str(runs / "a")])
    assert "named twice" in capsys.readouterr().err
