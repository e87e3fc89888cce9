"""Rounds with tiny models: each method, what is measured, when they stop, and that nothing is done twice."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_rlhf.cli import main
from lit_rlhf.cli.shipped import find_config
from lit_rlhf.data import FileSource
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.feedback import LabelStore, Vote, read_pairs
from lit_rlhf.files import read_lines, unfinished_file
from lit_rlhf.rounds import (
    Evaluation,
    InProcess,
    IterativeDPO,
    JudgeFeedback,
    Method,
    PeopleFeedback,
    RejectionSampling,
    RevisionFeedback,
    RewardFeedback,
    RewardRefresh,
    Rounds,
    SelfPlay,
    Stop,
    Training,
)
from lit_rlhf.rounds.commands import RoundError
from lit_rlhf.rounds.evaluation import measure
from lit_rlhf.testing import write_jsonl
from lit_rlhf.testing.tiny import write_tiny_world

LENGTH = {"class_path": "LengthReward", "init_args": {"unit": "characters"}}
SAMPLE = {"sampling": {"max_new_tokens": 100}, "dtype": "float32"}
PROMPTS = "data/prompts.jsonl"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_tiny_world(root / "data", rows=12)
    prompts = read_lines(root / PROMPTS)
    prompts[1]["prompt"] = "how was\u2028the\x85film? "  # which str.splitlines breaks at
    write_jsonl(root / PROMPTS, prompts)
    return root


@pytest.fixture(autouse=True)
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(world / "data")


class Counting(InProcess):
    """Runs them here, and remembers which."""

    def __init__(self) -> None:
        super().__init__(main)
        self.ran: list[str] = []

    def run(self, words: Sequence[str]) -> None:
        if "--print_config" not in words:
            self.ran.append(words[0])
        super().run(words)


def tiny(*configs: str, **options: Any) -> Training:
    """Fast enough to be seen."""
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    constant = {"class_path": "torch.optim.lr_scheduler.ConstantLR", "init_args": {"factor": 1.0}}
    model = {"init_args": {"optimizer": adam, "lr_scheduler": constant}}
    given = {"model": model, "data": {"init_args": {"cache_dir": "cache"}}}
    return Training([*configs, "overlays/tiny"], given, **options)


def rounds(method: Method, runner: InProcess | None = None, **options: Any) -> Rounds:
    given: dict[str, Any] = {"rounds": 2, "runner": runner or InProcess(main), **options}
    return Rounds("data/tiny-model", method, "runs/loop", **given)


def rows(path: str) -> list[dict[str, Any]]:
    return read_lines(Path("runs/loop", path))


def iterative(**options: Any) -> IterativeDPO:
    feedback = RewardFeedback(PROMPTS, LENGTH, 16, SAMPLE)
    return IterativeDPO(feedback, tiny("preference/dpo_lora", **options))


def content(root: str) -> dict[str, str]:
    """Hashes of the data and the weights of rounds."""
    paths = [*Path(root).rglob("*.jsonl"), *Path(root).rglob("*.safetensors")]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.name != "metrics.jsonl"  # which has times
    }


def test_iterative_dpo_and_its_record() -> None:
    runner = Counting()
    evaluation = Evaluation(PROMPTS, LENGTH, 1, SAMPLE)
    made = rounds(iterative(data="all"), runner, evaluation=evaluation)
    last = made.run()
    assert last == Path("runs/loop/round-01/policy/export")
    assert runner.ran == ["generate", *["generate", "fit", "generate"] * 2]
    record = json.loads(Path("runs/loop/rounds.json").read_text())
    assert record["state"] == "finished"
    steps = [step["name"] for step in record["rounds"]["1"]["steps"]]
    assert steps == ["sample", "policy", "evaluation"]
    measures = {key: each["measures"] for key, each in record["rounds"].items()}
    assert measures["initial"]["kl"] == pytest.approx(0, abs=1e-4)
    assert measures["0"]["kl"] != measures["1"]["kl"] != 0
    scores = [row["score"] for row in rows("round-01/evaluation.jsonl")]
    assert measures["1"]["score"] == pytest.approx(sum(scores) / 12)
    run = json.loads(Path("runs/loop/round-01/policy/run.json").read_text())
    both = len(rows("round-00/preferences.jsonl")) + len(rows("round-01/preferences.jsonl"))
    assert (
        sum(each["used"] + sum(each["left_out"].values()) for each in run["rows"].values()) == both
    )
    assert Path("runs/loop/round-01/policy/report.html").stat().st_size > 1000
    page = Path("runs/loop/report.html").read_text()
    for told in ("Round by round", "What it cost", "how was the", "round-01/policy.yaml"):
        assert told in page


def test_a_step_without_rows_is_said_before_anything_trains() -> None:
    def made(limit: int) -> Rounds:
        sample = {"sampling": {"max_new_tokens": limit}}
        feedback = RewardFeedback(PROMPTS, LENGTH, 16, sample)
        return rounds(IterativeDPO(feedback, tiny("preference/dpo_lora")), runner, rounds=1)

    runner, left = Counting(), unfinished_file(Path("runs/loop/round-00/preferences.jsonl"))
    with pytest.raises(RoundError, match=r"round 0, sample: .* made no row.*length limit"):
        made(1).run()
    assert runner.ran == ["generate"]
    for _ in range(2):
        made(100).run()
        assert runner.ran == ["generate", "generate", "fit"]
        assert not left.exists()
        left.touch()  # as by a kill behind the result


def test_what_is_done_is_not_done_again() -> None:
    rounds(iterative(), rounds=1).run()
    before = content("runs/loop")
    runner = Counting()
    rounds(iterative(), runner, rounds=2).run()
    assert runner.ran == ["generate", "fit"]
    assert before.items() <= content("runs/loop").items()
    again = Counting()
    rounds(iterative(), again, rounds=2).run()
    assert again.ran == []
    other = RejectionSampling(PROMPTS, LENGTH, training=tiny("sft/lora"))
    with pytest.raises(ConfigurationError, match="holds rounds of IterativeDPO"):
        rounds(other).run()
    assert json.loads(Path("runs/loop/rounds.json").read_text())["state"] == "finished"


@pytest.mark.slow
def test_a_lost_piece_is_made_again_with_the_same_bits() -> None:
    rounds(iterative()).run()
    whole = content("runs/loop")
    for lost in ("round-01/preferences.jsonl", "round-01/policy"):
        path = Path("runs/loop", lost)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert content("runs/loop") != whole
        rounds(iterative()).run()
        assert content("runs/loop") == whole


@pytest.mark.walk
def test_self_play_sets_demonstrations_against_own_samples() -> None:
    data = "data/demonstrations.jsonl"
    method = SelfPlay(data, 4, tiny("preference/dpo_lora"), SAMPLE)
    rounds(method).run()
    shown = {row["prompt"]: row["completion"] for row in read_lines(Path(data))}
    for number in (0, 1):
        pairs = rows(f"round-0{number}/preferences.jsonl")
        assert pairs
        assert all(shown[row["prompt"]] == row["chosen"] != row["rejected"] for row in pairs)
    assert rows("round-00/preferences.jsonl") != rows("round-01/preferences.jsonl")
    config = yaml.safe_load(Path("runs/loop/round-01/policy.yaml").read_text())
    assert config["model"]["init_args"]["backbone"]["name"] == "runs/loop/round-00/policy/export"


def test_rejection_sampling_imitates_the_best() -> None:
    method = RejectionSampling(PROMPTS, LENGTH, 16, 2, tiny("sft/lora"), SAMPLE)
    rounds(method, rounds=1).run()
    kept = rows("round-00/demonstrations.jsonl")
    assert len(kept) > 12
    assert all(row["score"] == len(row["completion"]) for row in kept)
    run = json.loads(Path("runs/loop/round-00/policy/run.json").read_text())
    assert run["module"] == "SupervisedModule"


@pytest.mark.slow
def test_the_policy_judges_itself() -> None:
    judge = {
        "class_path": "LocalJudge",
        "init_args": {
            "template": "{{ prompt }} {{ response }} good?",
            "words": {"yes": 1, "no": 0},
        },
    }
    reward = {"class_path": "JudgeReward", "init_args": {"judge": judge}}
    labelled = {
        "template": "{{ prompt }} {{ first }} {{ second }}",
        "backbone": {"name": "{policy}"},
    }
    evaluation = Evaluation(
        labels="data/preferences.jsonl", judge={"class_path": "LocalJudge", "init_args": labelled}
    )
    method = IterativeDPO(RewardFeedback(PROMPTS, reward, 16, SAMPLE), tiny("preference/dpo_lora"))
    made = rounds(method, evaluation=evaluation)
    made.run()
    pairs = [rows(f"round-0{number}/preferences.jsonl") for number in (0, 1)]
    assert all(0 < row["rejected_score"] < row["chosen_score"] < 1 for row in pairs[0] + pairs[1])
    asked = [
        yaml.safe_load(Path(f"runs/loop/{name}/agreement.yaml").read_text())
        for name in ("initial", "round-01")
    ]
    models = [each["judge"]["init_args"]["backbone"]["name"] for each in asked]
    assert models == ["data/tiny-model", "runs/loop/round-01/policy/export"]
    assert 0 <= made.record["rounds"]["1"]["measures"]["agreement"] <= 1


@pytest.mark.slow
def test_reward_refresh_trains_on_all_labels() -> None:
    judge = {
        "class_path": "LocalJudge",
        "init_args": {
            "template": "{{ prompt }} {{ first }} {{ second }}",
            "backbone": {"name": "data/tiny-model"},
        },
    }
    method = RewardRefresh(
        JudgeFeedback(PROMPTS, judge, 8, SAMPLE),
        PROMPTS,
        "data/preferences.jsonl",
        tiny("reward/full", start="initial", data="all"),
        tiny("policy/ppo_lora"),
    )
    made = rounds(method)
    made.run()
    labelled = [len(rows(f"round-0{number}/preferences.jsonl")) for number in (0, 1)]
    for number in (0, 1):
        run = json.loads(Path(f"runs/loop/round-0{number}/reward/run.json").read_text())
        used = sum(each["used"] + sum(each["left_out"].values()) for each in run["rows"].values())
        assert used == 12 + sum(labelled[: number + 1])
        config = yaml.safe_load(Path(f"runs/loop/round-0{number}/policy.yaml").read_text())
        path = config["model"]["init_args"]["reward"]["init_args"]["path"]
        assert path == f"runs/loop/round-0{number}/reward/export"
    assert {"reward_accuracy", "judge_position_bias"} <= made.record["rounds"]["1"][
        "measures"
    ].keys()


@pytest.mark.slow
@pytest.mark.parametrize("judged", [False, True])
def test_answers_are_revised_by_principles(judged: bool) -> None:
    template = "{{ prompt }} {{ first }} {{ second }}"
    options = {"template": template, "backbone": {"name": "{policy}"}}
    judge = {"class_path": "LocalJudge", "init_args": options} if judged else None
    feedback = RevisionFeedback(
        "asked.jsonl",
        ["Be brief.", "Say 'film' in it."],
        judge,
        6,
        {**SAMPLE, "prompt_column": "question"},
        "{{ principle }} {{ prompt }} {{ answer }}",
        "{{ principle }} {{ critique }}",
    )
    asked = read_lines(Path(PROMPTS))
    write_jsonl("asked.jsonl", ({"question": row["prompt"]} for row in asked))
    runner = Counting()
    rounds(IterativeDPO(feedback, tiny("preference/dpo_lora")), runner, rounds=1).run()
    assert runner.ran == ["generate"] * 3 + (["label"] if judged else []) + ["fit"]
    answers, critiques = rows("round-00/answers.jsonl"), rows("round-00/critiques.jsonl")
    assert [row["rejected"] for row in answers] == [row["rejected"] for row in critiques]
    found = rows("round-00/preferences.jsonl")
    assert found
    if judged:
        revised = {
            (r["question"], r["chosen"], r["rejected"]) for r in rows("round-00/revisions.jsonl")
        }
        pairs = {(r["prompt"], *sorted([r["chosen"], r["rejected"]])) for r in found}
        assert pairs <= {(prompt, *sorted(pair)) for prompt, *pair in revised}
    else:
        assert all({"question", "rejected", "critique", "chosen"} == set(row) for row in found)


@pytest.mark.slow
def test_people_are_waited_for() -> None:
    method = IterativeDPO(PeopleFeedback(PROMPTS, 16, SAMPLE), tiny("preference/dpo_lora"))
    made = rounds(method, rounds=1)
    assert made.run() == Path("data/tiny-model")
    assert made.record["state"] == "waiting"
    command = made.record["reason"].splitlines()[1].split()
    store = LabelStore(Path(command[3]), raters_per_pair=1)
    store.add(read_pairs(FileSource("runs/loop/round-00/candidates.jsonl")))
    for pair in store.pairs():
        store.vote(Vote(pair, "ann", "first"))
    main(command[1:])
    runner = Counting()
    assert rounds(method, runner, rounds=1).run() == Path("runs/loop/round-00/policy/export")
    assert runner.ran == ["fit"]


@pytest.mark.slow
def test_rules_stop_the_rounds() -> None:
    evaluation = Evaluation(PROMPTS, LENGTH, 1, SAMPLE)
    runner = Counting()
    made = rounds(iterative(), runner, evaluation=evaluation, stop=Stop(max_kl=1e-9), rounds=3)
    assert made.run() == Path("runs/loop/round-00/policy/export")
    assert made.record["state"] == "stopped"
    assert "above max_kl=1e-09" in made.record["reason"]
    assert runner.ran.count("fit") == 1


def test_reasons_to_stop() -> None:
    risen = [{"score": 1.0, "kl": 0.0}, {"score": 3.0, "kl": 2.0}]
    assert Stop(max_kl=2.0, max_score_drop=0.5).reason(risen) is None
    fallen = [*risen, {"score": 2.4, "kl": 2.0}]
    assert "score fell from 3 to 2.4" in str(Stop(max_score_drop=0.5).reason(fallen))
    assert Stop(max_score_drop=0.7).reason(fallen) is None
    agreement = [{"agreement": 0.75}, {"agreement": 0.625}]
    assert "agreement fell" in str(Stop(max_agreement_drop=0.1).reason(agreement))
    assert Stop().reason(agreement) is None


def test_what_a_round_came_to(tmp_path: Path) -> None:
    """With prompts whose own column is called score, a line separator in texts, and a judge that says nothing."""
    own = {"prompt": "a\u2028b", "score": "high"}
    write_jsonl(tmp_path / "preferences.jsonl", [{**own, "chosen_score": 2.0}])
    silent = {"prompt": "a", "response": "b\u2028c", "score": None, "finished": True, "kl": 0.5}
    write_jsonl(tmp_path / "evaluation.jsonl", [silent])
    found = measure(tmp_path)
    assert found == {"rows": 1, "collected_score": 2.0, "kl": 0.5, "finished": 1.0}
    assert Stop(max_score_drop=0.1).reason([{"score": 1.0}, found]) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": Stop(max_kl=1.0)}, "which nothing measures"),
        ({"rounds": 0}, "1 or more"),
        (
            {"stop": Stop(max_agreement_drop=0.1), "evaluation": Evaluation(PROMPTS, LENGTH)},
            "labels and judge",
        ),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        rounds(iterative(), **options)


@pytest.mark.parametrize("name", ["iterative_dpo", "self_play"])
def test_shipped_rounds_are_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Options of steps stay as they stand, with the short names of classes that another command reads."""
    with pytest.raises(SystemExit) as stop:
        main(["iterate", "-c", f"rounds/{name}", "--seed", "3", "--print_config"])
    assert stop.value.code in (None, 0)
    shown = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(find_config(f"rounds/{name}").read_text())
    assert shown["seed"] == 3
    assert shown["method"]["class_path"].endswith(given["method"]["class_path"])
    wanted = given["method"]["init_args"]
    if name == "iterative_dpo":
        wanted, shown = (
            each["feedback"]["init_args"] for each in (wanted, shown["method"]["init_args"])
        )
        assert shown["reward"] == wanted["reward"]
    else:
        shown = shown["method"]["init_args"]
    assert shown["sample"] == wanted["sample"]


def test_nothing_begins_where_a_later_step_is_wrong(capfd: pytest.CaptureFixture[str]) -> None:
    wrong = Training(["preference/dpo_lora"], {"model": {"init_args": {"los": 1}}})
    method = IterativeDPO(RewardFeedback(PROMPTS, LENGTH, 16, SAMPLE), wrong)
    with pytest.raises(RoundError, match="Nothing was begun"):
        rounds(method).run()
    assert "los" in capfd.readouterr().err
    assert not Path("runs/loop/round-00/preferences.jsonl").exists()


def test_a_run_that_exports_nothing_is_refused() -> None:
    Path("bare.yaml").write_text("trainer: {callbacks: [MetricsFile]}\n")
    method = IterativeDPO(
        RewardFeedback(PROMPTS, LENGTH, 16, SAMPLE), tiny("preference/dpo_lora", "bare.yaml")
    )
    with pytest.raises(ConfigurationError, match="ExportModel"):
        rounds(method).run()


def test_a_training_under_way_keeps_its_options() -> None:
    made = rounds(iterative(), rounds=1)
    made.run()
    shutil.rmtree("runs/loop/round-00/policy/export")
    changed = iterative()
    changed.training.options = {**changed.training.options, "trainer": {"max_epochs": 2}}
    with pytest.raises(ConfigurationError, match="was begun with other options"):
        rounds(changed, rounds=1).run()
    runner = Counting()
    rounds(iterative(), runner, rounds=1).run()
    assert runner.ran == ["fit"]


@pytest.mark.walk
def test_an_edited_configuration_is_another_option() -> None:
    own = Path("own.yaml")
    own.write_text("data: {init_args: {batch_size: 4}}\n")
    Path("optimizer.yaml").write_text("class_path: torch.optim.AdamW\n")
    method = IterativeDPO(
        RewardFeedback(PROMPTS, LENGTH, 16, SAMPLE), tiny("preference/dpo_lora", "own.yaml")
    )
    rounds(method, rounds=1).run()
    shutil.rmtree("runs/loop/round-00/policy/export")
    for text in (
        "data: {init_args: {batch_size: 2}}",
        "data: {init_args: {batch_size: 4}}\nmodel: {init_args: {optimizer: optimizer.yaml}}",
    ):
        own.write_text(text)
        with pytest.raises(ConfigurationError, match=r"other options .*, and own.yaml\)"):
            rounds(method, rounds=1).run()
    options = Path("runs/loop/round-00/policy.yaml")
    lines = [line for line in options.read_text().splitlines() if not line.startswith("# ")]
    options.write_text("\n".join(lines) + "\n")  # as former releases wrote it
    own.write_text("data: {init_args: {batch_size: 4}}  # the same\n")
    runner = Counting()
    rounds(method, runner, rounds=1).run()
    assert runner.ran == ["fit"]


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted(Counting):
        def run(self, words: Sequence[str]) -> None:
            if "--print_config" not in words:
                raise KeyboardInterrupt
            super().run(words)

    with pytest.raises(KeyboardInterrupt):
        rounds(iterative(), Interrupted()).run()
    assert "Interrupted. Start the same command again to go on" in capsys.readouterr().err
    assert json.loads(Path("runs/loop/rounds.json").read_text())["state"] == "interrupted"


def test_a_missing_reward_model_is_said_before_any_work() -> None:
    reward = {"class_path": "ModelReward", "init_args": {"path": "runs/nope/export"}}
    method = IterativeDPO(RewardFeedback(PROMPTS, reward, 16, SAMPLE), tiny("preference/dpo_lora"))
    runner = Counting()
    with pytest.raises(ConfigurationError, match=r"reward model directory 'runs/nope/export'"):
        rounds(method, runner, evaluation=Evaluation(PROMPTS, LENGTH, 1, SAMPLE)).run()
    assert runner.ran == []


@pytest.mark.parametrize("which", ["feedback", "evaluation", "preferences"])
def test_a_missing_file_is_said_before_any_work(which: str) -> None:
    feedback = RewardFeedback([PROMPTS, "nope.jsonl"], LENGTH, 16, SAMPLE)
    whole = RewardFeedback(PROMPTS, LENGTH, 16, SAMPLE)
    evaluation = Evaluation("nope.jsonl" if which == "evaluation" else PROMPTS, LENGTH, 1, SAMPLE)
    method = {
        "feedback": IterativeDPO(feedback, tiny("preference/dpo_lora")),
        "evaluation": iterative(),
        "preferences": RewardRefresh(whole, PROMPTS, "nope.jsonl"),
    }[which]
    runner = Counting()
    with pytest.raises(DataError, match=r"There is no file nope\.jsonl"):
        rounds(method, runner, evaluation=evaluation).run()
    assert runner.ran == []
