import json
import math
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.cli import main
from lit_rlhf.data import FileSource, PreferenceDataModule, RowsSource
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.feedback import label_pairs, read_labelled_pairs
from lit_rlhf.http import Endpoint
from lit_rlhf.judges import EndpointJudge, PairwiseJudge
from lit_rlhf.testing import make_tokenizer, write_jsonl
from tests.loopback import Answer, Request, serving


def longer(request: Request) -> Answer:
    """Prefers the longer answer, what stands first a little; abstains on empty ones, ties on equal lengths."""
    first, second = request.body["messages"][-1]["content"].split("|")
    p = 0.6 if len(first) == len(second) else 0.95 if len(first) > len(second) else 0.15
    probs = {"A": p, "B": 1 - p} if first and second else {"pass": 1.0}
    top = [{"token": word, "logprob": math.log(p)} for word, p in probs.items()]
    return Answer({"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]})


WORDS = {"A": 1.0, "B": 0.0, "pass": None}
PAIR = "{{ first }}|{{ second }}"


def labelled(rows: list[dict[str, Any]], **options: Any) -> Any:
    pairs, _ = read_labelled_pairs(RowsSource(rows), **options)
    with serving(longer) as server:
        judge = EndpointJudge(Endpoint(server.url), "m", template=PAIR, words=WORDS)
        return label_pairs(pairs, PairwiseJudge(judge))


def test_pairs_get_soft_labels_and_are_turned_where_the_judge_says_so() -> None:
    rows = [
        {"prompt": "p", "chosen": "long answer", "rejected": "short"},
        {"prompt": "q", "chosen": "short", "rejected": "long answer"},
        {"prompt": "r", "chosen": "same", "rejected": "emas"},
    ]
    found = labelled(rows)
    said = [(each.row()["chosen"], each.row()["p_chosen"]) for each in found.judged]
    long = ("long answer", pytest.approx(0.9))
    assert said == [long, long, ("same", 0.5)]
    assert found.agreement == pytest.approx((1 + 0 + 0.5) / 3)
    assert found.position_bias == pytest.approx((0.05 + 0.05 + 0.1) / 3)
    assert "1 of them tied" in str(found) and "33.3% of the verdicts follow the place" in str(found)


def test_rankings_and_unjudged_answers_are_all_their_pairs() -> None:
    answers = ["a", "bbb", "cc"]
    ranked = labelled([{"prompt": "p", "completions": answers, "scores": [1.0, 3.0, 3.0]}])
    assert len(ranked.judged) == 3
    assert ranked.agreement == 1.0  # a < bbb, a < cc; the labels' tie says nothing
    unjudged = labelled([{"prompt": "p", "completions": [*answers, "a"]}])
    assert len(unjudged.judged) == 3 and unjudged.agreement is None
    assert "agreement" not in str(unjudged)


def test_the_soft_labels_of_the_data_are_what_agreement_is_with() -> None:
    rows = [{"prompt": "p", "chosen": "long answer", "rejected": "x", "p_chosen": p} for p in (0.2, 0.9)]  # fmt: skip
    assert labelled(rows).agreement == 0.5


def test_what_cannot_be_judged_is_said_before_anything_is_asked() -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    equal = good | {"rejected": "a"}
    with pytest.raises(DataError, match=r"row 2: identical pair"):
        read_labelled_pairs(RowsSource([good, equal]))
    assert read_labelled_pairs(RowsSource([good, equal]), invalid="drop")[1] == 1
    with pytest.raises(ConfigurationError, match=r"No format reads pairs or rankings.*\['x'\]"):
        read_labelled_pairs(RowsSource([{"x": 1}]))
    with pytest.raises(DataError, match=r"no pair of answers to judge; 1 rows"):
        read_labelled_pairs(RowsSource([equal]), invalid="drop")


def test_the_command_writes_what_training_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"question": "q </answer>", "a": "{{ 7 * 7 }}", "b": "<script>"},
        {"question": [{"role": "user", "content": "é\u2028"}], "a": "xx", "b": "y"},
        {"question": "nothing", "a": "", "b": "y"},
        {"question": "the same", "a": "y", "b": "y"},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(longer) as server:
        words = ["label", str(data), "--output", str(output), "--judge", "EndpointJudge"]
        words += ["--judge.endpoint.url", server.url, "--judge.model", "m"]
        words += ["--judge.template", PAIR, "--judge.words", json.dumps(WORDS)]
        words += ["--format", "ExplicitPrompt", "--format.prompt", "question"]
        words += ["--format.chosen", "a", "--format.rejected", "b", "--skip_invalid", "true"]
        main(words)
        asked = len(server.requests)
        main([*words, "--overwrite"])
        assert len(server.requests) == asked == 6
    said = capsys.readouterr().out
    assert "2 of 3 pairs labelled" in said and "1 without a verdict" in said
    assert "1 rows were left out" in said
    assert "0 questions asked, 6 known from before" in said
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert written[0]["chosen"] == "{{ 7 * 7 }}"
    options = {"val_fraction": 0, "batch_size": 2}
    module = PreferenceDataModule(FileSource(output), tokenizer=make_tokenizer(), **options)
    module.prepare_data()
    module.setup("fit")
    assert next(iter(module.train_dataloader()))["p_chosen"].tolist() == pytest.approx([0.9] * 2)


def test_why_nothing_was_labelled_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "bb"}])
    words = ["label", str(data), "--output", str(tmp_path / "out.jsonl")]
    with serving(lambda _: Answer({"error": "no credit"}, status=418)) as server:
        words += ["--judge=EndpointJudge", f"--judge.endpoint.url={server.url}", "--judge.model=m"]
        words += ["--judge.failures=null", "--judge.template", PAIR]
        with pytest.raises(SystemExit):
            main(words)
    assert re.search(
        r"No pair got a verdict.*the last failure: .*no credit", capsys.readouterr().err
    )
    assert not (tmp_path / "out.jsonl").exists()


def test_ctrl_c_says_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "bb"}]
    data, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"

    def interrupting(request: Request) -> Answer:
        if next(once, False):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.5)
        return longer(request)

    once = iter([True])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with serving(interrupting) as server:
        words = ["label", str(data), "--output", str(output), "--judge=EndpointJudge"]
        words += [f"--judge.endpoint.url={server.url}", "--judge.model=m"]
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--judge.template", PAIR])
    signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 130
    assert "under way are waited for, 60 seconds at most" in caplog.text
    said = capsys.readouterr().err
    assert f"kept in {output}.answers: the same command goes on" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], r"Give either a file to label or --source"),
        (["in.jsonl", "--judge", "LocalJudge"], r"--judge.backbone.name DIRECTORY"),
        (["in.jsonl", "--judge.template", "score"], r"reads `first` and `second`"),
        (["out.jsonl"], r"would replace out.jsonl"),
    ],
)
def test_commands_that_cannot_work_say_so(
    options: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out.jsonl").touch()
    words = ["label", "--output", "out.jsonl", "--judge", "EndpointJudge"]
    words += ["--judge.endpoint.url", "http://127.0.0.1:1", "--judge.model", "m", *options]
    if "LocalJudge" in options:
        words = ["label", "--output", "out.jsonl", *options]
    with pytest.raises(SystemExit):
        main(words)
    assert re.search(said, capsys.readouterr().err)
