"""`lit-rlhf annotate` as it is called."""

import json
import re
import signal
import sys
from pathlib import Path

import httpx2
import pytest
import torch

from lit_rlhf.cli import main
from lit_rlhf.evaluation import ModelScorer, disagreements
from lit_rlhf.feedback import LabelStore, Pair, Vote
from lit_rlhf.models import Backbone, ModelSpec, export_reward
from lit_rlhf.testing import tiny_preferences, write_jsonl
from tests import warm
from tests.unit.feedback.server import running


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    return str(write_jsonl(tmp_path / "pairs.jsonl", tiny_preferences(30)))


def vote_on_next(client: httpx2.Client, page: str | None = None) -> int:
    """Answer the pair that is shown, or one that was shown before the server was killed."""
    page = page or client.get("/pair").text
    fields = dict(
        re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.partition('id="choice"')[2])
    )
    found = re.search(r'data-pair="(\d+)"', page)
    assert found, page
    answer = client.post(f"/pair/{found[1]}", data={**fields, "verdict": "first"})
    assert answer.status_code == 200
    return int(found[1])


def sign_in(client: httpx2.Client, name: str) -> None:
    secret = re.search(r'name="secret" value="([^"]+)"', client.get("/").text)
    assert secret
    assert client.post("/rater", data={"rater": name, "secret": secret[1]}).status_code == 200


def test_kill_9_loses_no_vote(pairs: str, tmp_path: Path) -> None:
    options = [pairs, "--output", str(tmp_path / "labels"), "--raters_per_pair", "1"]
    with running(*options, "--port", "0") as server:
        client = httpx2.Client(base_url=server.url, follow_redirects=True)
        sign_in(client, "ann")
        voted = [vote_on_next(client) for _ in range(10)]
        open_page = client.get("/pair").text
        server.end(warm.KILL)
    with pytest.raises(httpx2.ConnectError):
        vote_on_next(client, open_page)
    assert [vote.pair for vote in LabelStore(tmp_path / "labels").votes()] == voted
    with running(*options, "--port", server.port) as again:
        assert "30 pairs, 0 of them new" in again.said
        assert client.get("/pair").text == open_page
        voted.append(vote_on_next(client, open_page))
        voted += [vote_on_next(client) for _ in range(3)]
        assert again.end(signal.SIGINT) == 0
    client.close()
    assert [vote.pair for vote in LabelStore(tmp_path / "labels").votes()] == voted
    assert len(set(voted)) == 14


def test_an_ensemble_says_what_is_asked_first(
    pairs: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        spec = ModelSpec(name=str(tiny_model_dir), init_seed=seed)
        backbone = Backbone.load(spec, lm_head=False, trainable=False)
        torch.manual_seed(seed)
        backbone.add_head("reward", drawn=True)
        export_reward(backbone, tmp_path / str(seed), merge=True)
    served = []
    monkeypatch.setattr("lit_rlhf.feedback.web.serve", lambda store, *_, **__: served.append(store))
    models = [str(tmp_path / "1"), str(tmp_path / "2")]
    main(["annotate", pairs, "--output", str(tmp_path / "labels"), "--ensemble", *models])
    (store,) = served
    asked = store.pairs()
    unsure = {number: pair.uncertainty for number, pair in asked.items()}
    texts = [(pair.prompt, pair.first, pair.second) for pair in asked.values()]
    expected = disagreements([ModelScorer.load(path) for path in models], texts)
    assert list(unsure.values()) == expected
    assert len(set(expected)) > 5
    assert unsure[store.next_pair("ann")] == max(expected)
    store.vote(Vote(store.next_pair("ann"), "ann", "tie"))
    assert unsure[store.next_pair("ann")] == sorted(expected)[-2]


def test_other_addresses_need_a_token(pairs: str, tmp_path: Path) -> None:
    options = [pairs, "--output", str(tmp_path), "--port", "0"]
    with running(*options, "--host", "0.0.0.0") as server:
        url = f"http://127.0.0.1:{server.port}/"
        assert len(server.query) > 20
        assert httpx2.get(url).status_code == 401
        assert httpx2.get(url + server.query, follow_redirects=False).status_code == 303
        with httpx2.Client(follow_redirects=True) as client:
            assert "Your name" in client.get(url + server.query).text


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = LabelStore(tmp_path)
    store.add([Pair("p", "a", "b"), Pair("q", "a", "b")])
    store.vote(Vote(1, "ann", "second"))
    main(["annotate", "--output", str(tmp_path), "--export", str(tmp_path / "out.jsonl")])
    assert (
        "out.jsonl: 1 pairs, 0 of them tied; left out: 0 flagged, 0 skipped, 1 without"
        in capsys.readouterr().out
    )
    exported = (tmp_path / "out.jsonl").read_text()
    assert json.loads(exported)["chosen"] == "b"
    store.vote(Vote(2, "ann", "first"))
    with pytest.raises(SystemExit):
        main(["annotate", "--output", str(tmp_path), "--export", str(tmp_path / "out.jsonl")])
    assert "is there already" in (said := capsys.readouterr().err)
    assert "Choose another place by --export" in said
    assert (tmp_path / "out.jsonl").read_text() == exported


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Give either a file to annotate or --source"),
        (["no.jsonl"], "There is no file no.jsonl"),
        (["bad.jsonl"], "bad.jsonl, line 2 is no JSON"),
        (["same.jsonl"], "same.jsonl, row 1: identical pair: both answers are 'a'"),
        (["same.jsonl", "--skip_invalid", "true"], "holds no pair of answers to compare. 1 rows"),
        (["good.jsonl", "--uncertainty", "std"], "row 1: no column 'std'"),
        (["good.jsonl", "--uncertainty", "prompt", "--ensemble", "a", "b"], "give one of them"),
        (["good.jsonl", "--ensemble", "nowhere"], "nowhere"),
        (["good.jsonl", "--raters-per-pair", "0"], "raters_per_pair must be 1 or more"),
        (["good.jsonl", "--attributes", "x", "x"], "attributes must be up to 9 different names"),
        (["good.jsonl", "--output", "good.jsonl"], "Labels can't be kept in good.jsonl"),
        (["good.jsonl", "--port", "70000"], "There is no port 70000"),
        (["good.jsonl", "--host", "203.0.113.7"], "Can't listen on port 8000 of 203.0.113.7"),
        (["good.jsonl", "--token", ""], "The token is empty"),
        (["good.jsonl", "--export", "out.jsonl"], "leave out the data to annotate"),
        (["--export", "out.jsonl", "--ensemble", "a", "b"], "which say what is asked first"),
        (["--export", "out.jsonl", "--uncertainty", "doubt"], "which say what is asked first"),
        (["--export", "out.jsonl", "--output", "nowhere"], "There are no labels in nowhere"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    Path("good.jsonl").write_text(json.dumps(row))
    Path("same.jsonl").write_text(json.dumps({**row, "rejected": "a"}))
    Path("bad.jsonl").write_text(json.dumps(row) + "\nbad")
    with pytest.raises(SystemExit) as stopped:
        main(["annotate", *words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("\nlit-rlhf annotate: ")
    assert said in error


def test_a_missing_extra_is_named(
    pairs: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "lit_rlhf.feedback.web", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["annotate", pairs, "--output", str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip() == (
        "lit-rlhf annotate: Annotating needs fastapi, which isn't installed: pip install 'lit-rlhf[annotate]'."
    )


def test_names_of_columns_keep_their_dashes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "p", "answer-1": "a", "answer-2": "a"}
    file = write_jsonl(tmp_path / "pairs.jsonl", [row])
    words = ["--format=ExplicitPrompt", "--format.chosen=answer-1", "--format.rejected", "answer-2"]
    with pytest.raises(SystemExit):
        main(["annotate", str(file), *words])
    assert "identical pair" in capsys.readouterr().err


def test_pairs_of_an_earlier_start_are_told(
    pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "labels"
    LabelStore(output).add([Pair("of another file", "a", "b")])
    with pytest.raises(SystemExit):  # no such port
        main(["annotate", pairs, "--output", str(output), "--port", "65536"])
    said = capsys.readouterr().out
    assert "30 pairs, 30 of them new" in said
    assert "; 1 others of earlier starts are asked and exported as well" in said
