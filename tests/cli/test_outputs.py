"""What cost computing, or a person's work, is replaced by no command that isn't told to."""

import inspect
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.cli import main
from lit_rlhf.cli.commands import COMMANDS, WRITES, Written, overwrites
from lit_rlhf.cli.functions import REQUEST, call
from lit_rlhf.models.cards import RECORD
from tests.walks import walk

ROWS = '{"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c"}\n'
JUDGE = ["--judge=LocalJudge", "--judge.backbone.name=none"]
WORDS = {
    "annotate": ["--output=labels"],
    "data inspect": ["rows.jsonl"],
    "data convert": ["rows.jsonl"],
    "evaluate-reward": ["--path=none", "--data=rows.jsonl"],
    "export": ["--ckpt_path=rows.jsonl"],
    "from-trl": ["rows.jsonl"],
    "generate": ["--model=none", "--prompts=rows.jsonl"],
    "init": ["rows.jsonl"],
    "label": ["rows.jsonl", *JUDGE],
    "report": ["runs"],
    "schema": [],
    "score": ["--model=none", "--data=rows.jsonl"],
}
"""Of each command that writes where it is told, but for `predict` (`test_run_directory.py`)."""
PLACES = [
    (command, option)
    for command, options in WRITES.items()
    for option, written in options.items()
    if not written.own and command != "predict"
]
READ = {
    *(("from-trl", "script"), ("push", "path"), ("push", "card"), ("push", "run")),
    ("report", "runs"),
}
"""Options that name what is only read."""


def words_of(command: str, option: str, place: str) -> list[str]:
    more = WORDS[command]
    if command == "label" and option != "output":
        more = [*more, "--output=runs/labelled.jsonl"]
    named = place if command == "data convert" else f"--{option}={place}"
    return [*command.split(), *more, named]


def place_of(written: Written) -> str:
    return f"there{written.suffixes[0] if written.suffixes else ''}"


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "runs").mkdir()
    return tmp_path


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Nothing of a command is imported. One that has no option to go by must read its line first."""

    def imported(module: str) -> Any:
        pytest.fail(f"{module} is imported")

    if request.node.callspec.params["command"] != "data convert":
        monkeypatch.setattr(sys.modules["lit_rlhf.cli.main"], "_imported", imported)


def test_every_command_says_what_it_writes() -> None:
    names = [*(name for name in COMMANDS if name != "data")]
    names += [f"data {name}" for name in ("show", "inspect", "convert")]
    assert sorted(WRITES) == sorted(names)
    for name in names:
        module = vars(import_module(COMMANDS[name.split()[0]].module))
        function = module.get(name.split()[-1].replace("-", "_"), module.get("evaluate"))
        if not inspect.isfunction(function):
            continue
        for option, parameter in inspect.signature(function).parameters.items():
            if "Path" in str(parameter.annotation) and (name, option) not in READ:
                assert option in WRITES[name], (name, option)
    assert WRITES["export"]["output"].marker == RECORD


def occupied(here: Path, written: Written) -> tuple[Path, Path]:
    """A place of an output at which something is already, and the file that is there."""
    there = here / place_of(written)
    held = there / RECORD if written.marker else there
    held.parent.mkdir(exist_ok=True)
    held.write_text("words")
    return there, held


@pytest.mark.parametrize(
    ("command", "option"), walk(PLACES, ("generate", "output"), ("label", "summary"))
)
@pytest.mark.usefixtures("light")
def test_what_is_there_stays(
    command: str, option: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = WRITES[command][option]
    there, held = occupied(here, written)
    said = refused(capsys, words_of(command, option, there.name))
    assert f"{there.name} is there already. Choose another place by " in said
    assert ("--overwrite" in said) == (not written.again)
    assert ("--overwrite" in said) <= overwrites(command)
    assert held.read_text() == "words"
    assert sorted(each.name for each in here.iterdir()) == ["rows.jsonl", "runs", there.name]


@pytest.mark.parametrize(
    ("command", "option"),
    walk([each for each in PLACES if not WRITES[each[0]][each[1]].again], ("score", "output")),
)
def test_it_may_be_replaced(
    command: str, option: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what it is told to replace is there until the new one is."""
    written = WRITES[command][option]
    there, held = occupied(here, written)
    try:
        main([*words_of(command, option, there.name), "--overwrite"])
    except SystemExit:
        assert held.read_text() == "words"
        assert "is there already" not in capsys.readouterr().err
    else:
        assert held.read_text() != "words"


@pytest.mark.parametrize(
    ("command", "option", "more"),
    walk(
        [
            (*place, more)
            for place in PLACES
            for more in ("", "--overwrite")
            if any("rows.jsonl" in word for word in WORDS[place[0]])
            if not (more and WRITES[place[0]][place[1]].again)
        ],
        ("generate", "output", "--overwrite"),
        ("data inspect", "output", ""),
        ("export", "output", "--overwrite"),
    ),
)
def test_what_is_read_is_never_replaced(
    command: str, option: str, more: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not under another name either, nor as the numbers beside a page, nor with its directory."""
    written = WRITES[command][option]
    data, place = here / "rows.jsonl", "runs/../rows.jsonl"
    if ".html" in written.suffixes:
        data, place = data.rename("rows.json"), "rows.html"
    elif written.marker:
        data, place = data.rename("runs/rows.jsonl"), "runs"
        (here / "runs" / written.marker).touch()
    told = [word.replace("rows.jsonl", str(data)) for word in WORDS[command]]
    named = place if command == "data convert" else f"--{option}={place}"
    others = ["--output=labelled.jsonl"] if option == "summary" else []
    said = refused(capsys, [*command.split(), *told, named, *others, *filter(None, [more])])
    assert "would replace" in said
    assert data.read_text() == ROWS


@pytest.mark.parametrize(
    ("command", "option"), walk(PLACES, ("export", "output"), ("report", "output"))
)
@pytest.mark.usefixtures("light")
def test_a_place_that_cannot_be_written(
    command: str,
    option: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written = WRITES[command][option]
    name = place_of(written)
    said = refused(capsys, words_of(command, option, f"rows.jsonl/{name}"))
    assert f"rows.jsonl/{name} can't be written: Not a directory. Mend that, or choose" in said
    monkeypatch.setattr(
        os, "access", lambda at, _: Path(at).name == "runs"
    )  # root may write everywhere
    said = refused(capsys, words_of(command, option, f"new/{name}"))
    assert f"new/{name} can't be written: Permission denied. Mend that, or choose" in said
    assert not (here / "new").exists()
    if not written.marker:
        (here / f"runs/{name}").mkdir()
        assert "names no file, but a directory" in refused(
            capsys, words_of(command, option, f"runs/{name}")
        )


def test_a_page_is_made_again_where_it_is_one(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "inspect", "rows.jsonl", "--output", "new/page.html"]
    main(words)
    first = json.loads((here / "new/page.json").read_text())
    main(words)
    assert json.loads((here / "new/page.json").read_text()) == first
    (here / "new/page.html").unlink()  # whose numbers they are is not known any more
    assert "page.json is there already" in refused(capsys, words)


def test_what_is_empty_is_no_loss(here: Path) -> None:
    (here / "my.yaml").touch()
    main(["init", "ppo", "--output", "my.yaml"])
    assert (here / "my.yaml").stat().st_size


def test_what_is_no_file_stays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe stands for `/dev/null`, which a failing test would replace for the whole machine."""
    os.mkfifo(here / "pipe")
    said = refused(capsys, ["init", "ppo", "--output", "pipe", "--overwrite"])
    assert "names no file, but a pipe or a device" in said
    assert (here / "pipe").is_fifo()


def test_two_outputs_in_one_place(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    (here / "a.jsonl").write_text(ROWS)
    words = ["label", "rows.jsonl", *JUDGE, "--output=a.jsonl", "--summary=a.jsonl", "--overwrite"]
    assert "would replace a.jsonl, which the command reads or writes" in refused(capsys, words)


def test_a_killed_call_is_known_again_whatever_it_may_replace(here: Path) -> None:
    known: list[tuple[Path, str]] = []

    def generate(output: Path, request: str = "") -> None:
        known.append((output, request))

    for more in ([], ["--overwrite"]):
        call(generate, ["--output=~/a.jsonl", *more], "generate", {"request": REQUEST})
    assert known[0] == known[1]
    assert known[0][0] == Path("~/a.jsonl").expanduser()
