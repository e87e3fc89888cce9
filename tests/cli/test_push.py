"""Exports on a hub: the real client against a stand-in of its HTTP interface on loopback."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import close_session, constants

from lit_rlhf.cli import main
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec, export_policy, export_reward
from lit_rlhf.testing.tiny import write_tiny_world
from tests.loopback import Server


class Hub:
    """Repositories in memory.

    Attributes:
        files: What was committed, by repository.
        private: Of each repository.
        refuse: Status to answer writes with; 0 takes them.
        full: Whether large files are refused.
        log: Methods and paths.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.stored: dict[str, bytes] = {}
        self.refuse, self.full = 0, False
        self.log: list[str] = []
        self.tokens: set[str | None] = set()
        self.address = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.log.append(f"{method} {path}")
        if self.refuse and method != "GET":
            return self.refuse, {"error": "not you"}
        if path.startswith("/store/"):
            if self.full:
                return 400, {"error": "no room"}
            self.stored[path.removeprefix("/store/")] = body
            return 200, {}
        asked = json.loads(body) if body and "/commit/" not in path else {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": self._places(asked["objects"])}
        return self._of_models(path, body, asked)

    def _places(self, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
        hrefs = [f"{self.address}/store/{each['oid']}" for each in objects]
        pairs = zip(objects, hrefs, strict=True)
        return [o | {"actions": {"upload": {"href": href, "header": {}}}} for o, href in pairs]

    def _of_models(self, path: str, body: bytes, asked: Any) -> tuple[int, Any]:
        if path == "/api/repos/create":
            name = f"{asked['organization']}/{asked['name']}"
            self.files[name], self.private[name] = {}, asked.get("visibility") == "private"
            return 200, {"url": f"{self.address}/{name}"}
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/main)?", path.partition("?")[0])
        assert found, path
        name, what = found[1], found[2]
        if name not in self.files:
            return 404, {"error": "Repository not found"}
        told: Any = {"id": name, "private": self.private[name], "siblings": [], "tags": []}
        if what == "preupload":
            modes = {True: "lfs", False: "regular"}
            paths = [file["path"] for file in asked["files"]]
            kinds = [modes[each.endswith(".safetensors")] for each in paths]
            pairs = zip(paths, kinds, strict=True)
            told = {
                "files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in pairs]
            }
        elif what == "commit":
            self._commit(name, body)
            url = f"{self.address}/{name}/commit/1"
            told = {"commitUrl": url, "commitOid": "1", "pullRequestUrl": None}
        return 200, told

    def _commit(self, name: str, body: bytes) -> None:
        for item in map(json.loads, body.splitlines()):
            value = item["value"]
            if item["key"] == "file":
                self.files[name][value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                self.files[name][value["path"]] = self.stored[value["oid"]]


# Of the hub's client, between it and its httpx.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@contextmanager
def serving(hub: Hub) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # as in tests/loopback.py

        def do_POST(self) -> None:
            hub.tokens.add(self.headers.get("authorization"))
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, given = hub.answer(self.command, self.path, body)
            data = json.dumps(given).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST  # noqa: N815

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    server = Server(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    with serving(found):
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # Its other way of sending large files talks to a server of its own, by a library that isn't in Python.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield found
    close_session()  # it was made for a network that is there


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model's run, and exports of adapters."""
    root = write_tiny_world(tmp_path_factory.mktemp("world") / "data").parent
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        data = str(root / "data/preferences.jsonl")
        words = ["reward", "--model", "data/tiny-model", "--data", data, "-c", "overlays/tiny"]
        main([*words, "--run_dir", "r"])
        adapted = Backbone.load(ModelSpec(name="data/tiny-model", lora=LoraSpec(rank=2)))
        adapted.add_adapter("policy")
        export_policy(adapted, root / "adapter", merge=False)
        export_policy(adapted, root / "policy", merge=True)
        adapted.add_head("reward")
        export_reward(adapted, root / "reward", merge=False, role="policy")
    return root


@pytest.fixture
def world(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["push", *words])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().rpartition("lit-rlhf push: ")[2]  # behind a bar
    assert "\n" not in said
    return said


def test_a_reward_model_arrives_private_whole_and_with_its_card(
    world: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["push", "r/export", "me/judge", "--license", "mit"])
    assert capsys.readouterr().out == f"{hub.address}/me/judge/commit/1\n"
    assert hub.private == {"me/judge": True} and hub.tokens == {"Bearer hf_secret", None}
    arrived = hub.files["me/judge"]
    for file in Path("r/export").iterdir():
        if file.name not in ("README.md", "lit_rlhf.json"):
            assert arrived[file.name] == file.read_bytes(), file
    weights = Path("r/export/model.safetensors").read_bytes()
    assert list(hub.stored) == [hashlib.sha256(weights).hexdigest()]
    everything = b"".join(data for name, data in arrived.items() if name != "model.safetensors")
    assert str(world).encode() not in everything and b"hf_secret" not in everything
    _, header, card = arrived["README.md"].decode().split("---\n", 2)
    about = yaml.safe_load(header)
    assert about["license"] == "mit" and about["pipeline_tag"] == "text-classification"
    last = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    accuracy = [row["val/accuracy"] for row in last if "val/accuracy" in row][-1]
    for told in (
        "| train | preferences.jsonl | 64 pairs | none |",
        "RewardModelModule",
        "| `model.loss.class_path` | `lit_rlhf.objectives.BradleyTerry` |",
        f"| accuracy, validation | {accuracy:.4g} |",
        'AutoModelForSequenceClassification.from_pretrained("me/judge")',
    ):
        assert told in card


@pytest.mark.parametrize("kind", ["adapter", "reward"])
def test_an_adapter_names_a_base_that_others_have(
    kind: str, world: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "which nobody else has" in refusal([kind, "me/adapter"], capsys)
    assert hub.log == []
    main(["push", kind, "me/adapter", "--base", "someone/base"])
    arrived = hub.files["me/adapter"]
    config = json.loads(arrived["adapter_config.json"])
    assert config["base_model_name_or_path"] == "someone/base"
    assert json.loads(arrived["lit_rlhf.json"])["base"] == "someone/base"
    assert "base_model: someone/base" in arrived["README.md"].decode()
    assert str(world) not in str(arrived["README.md"])


def test_what_is_pushed_can_be_used(world: Path, hub: Hub, tmp_path: Path) -> None:
    main(["push", "policy", "me/policy"])
    for name, data in hub.files["me/policy"].items():
        (tmp_path / name).write_bytes(data)
    main(["generate", "--model", str(tmp_path), "--prompt", "a", "--sampling.max_new_tokens", "2"])


def test_a_dry_run_shows_files_and_card_and_sends_nothing(
    world: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    main(["push", "r/export", "me/judge", "--dry_run"])
    said = capsys.readouterr().out
    assert "me/judge (private)" in said and "model.safetensors" in said and "## Figures" in said
    assert hub.log == []


def test_a_public_repository_is_not_written_by_accident(
    world: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["me/open"], hub.private["me/open"] = {}, False
    assert "exists and is public" in refusal(["policy", "me/open"], capsys)
    assert hub.files["me/open"] == {}
    main(["push", "policy", "me/open", "--public", "--card", "data/preferences.jsonl"])
    assert hub.files["me/open"]["README.md"] == Path("data/preferences.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("status", "said"), [(401, "isn't valid"), (403, "no right"), (413, "larger"), (422, "not you")]
)
def test_what_the_hub_refuses_is_a_sentence(
    status: int, said: str, world: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["me/policy"], hub.private["me/policy"] = {}, True
    hub.refuse = status
    found = refusal(["policy", "me/policy"], capsys)
    assert said in found and str(status) in found


def test_a_large_file_that_is_refused_leaves_no_commit(
    world: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.full = True
    assert "model.safetensors" in refusal(["policy", "me/policy"], capsys)
    assert hub.files["me/policy"] == {}


def test_no_answer_no_token_no_export(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(next(Path("r/checkpoints").glob("*.ckpt")))
    for path, way_out in (
        (checkpoint, "lit-rlhf export --ckpt_path"),
        ("r", "give r/export"),
        ("data", "ExportModel or `lit-rlhf export`"),
        ("nowhere", "is no directory"),
    ):
        assert way_out in refusal([path, "me/policy"], capsys)
    assert "has no owner" in refusal(["policy", "policy"], capsys)
    assert "no name of a repository" in refusal(["policy", "me/a b"], capsys)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # read when it is imported, by whom ever
    assert "HF_HUB_OFFLINE is set" in refusal(["policy", "me/policy"], capsys)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "can't be reached" in refusal(["policy", "me/policy"], capsys)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    assert "no token" in refusal(["policy", "me/policy"], capsys)
