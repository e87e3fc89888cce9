"""Every option of every class and command against values that nobody should give: one sentence, or they are right."""

import dataclasses
import inspect
import random
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from lit_rlhf.cli import main
from lit_rlhf.cli.commands import COMMANDS
from lit_rlhf.cli.refusals import PACKAGES, construct, describe, own_error, refuse_all_misfits
from lit_rlhf.cli.unloaded import described_classes
from lit_rlhf.errors import LitRLHFError
from lit_rlhf.internals.jsonargparse import read_none_as_null
from lit_rlhf.testing import tiny_demonstrations, write_jsonl
from lit_rlhf.testing.tiny import write_tiny_world

VALUES = ("-1", "0", "nan", ".inf", "", "x", "[]", "null", "1e30")
SHARE = 24
"""One in so many of all cases is tried by default, always the same ones; the others with `-m slow`."""

NEEDED = {
    "backbone": '{"name": "data/tiny-model"}',
    "reward": "LengthReward",
    "cost": "LengthReward",
    "train": '{"class_path": "RowsSource", "init_args": {"rows": [{"prompt": "a", "completion": "b"}]}}',
    "tokenizer": "data/tiny-model",
}
"""What classes need beside the option that is tried."""
IN_ROUNDS = NEEDED | {"reward": '{"values": {"class_path": "LengthReward"}}'}
"""There it is for the command that a step runs, as a file has it."""


def cases_of_classes() -> list[tuple[str, str, str]]:
    found = []
    for package in PACKAGES:
        for name, _ in described_classes(package):
            kind = getattr(__import__(f"lit_rlhf.{package}", fromlist=[name]), name)
            if not inspect.isfunction(kind.__init__) or dataclasses.is_dataclass(kind):
                continue  # records, and groups of options, which are tried within their modules
            options = [p for p in inspect.signature(kind.__init__).parameters if p != "self"]
            found += [
                (f"lit_rlhf.{package}.{name}", option, value)
                for option in options
                if option not in ("args", "kwargs")
                for value in VALUES
            ]
    return found


def shared(cases: list[Any]) -> list[Any]:
    chosen = set(random.Random(0).sample(range(len(cases)), len(cases) // SHARE))
    return [
        pytest.param(*case, marks=[] if i in chosen else pytest.mark.slow, id="-".join(case))
        for i, case in enumerate(cases)
    ]


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_tiny_world(root / "data")
    write_jsonl(str(root / "rows.jsonl"), tiny_demonstrations(2))
    return root


@pytest.mark.parametrize(("path", "option", "value"), shared(cases_of_classes()))
def test_classes(
    path: str, option: str, value: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    read_none_as_null()
    package, _, name = path.rpartition(".")
    kind = getattr(__import__(package, fromlist=[name]), name)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "part", instantiate=True)
    parser.add_instantiator(construct, object)
    required = [
        p.name
        for p in inspect.signature(kind.__init__).parameters.values()
        if p.name in NEEDED and p.name != option and (p.default is p.empty or p.name == "train")
    ]
    needed = IN_ROUNDS if package == "lit_rlhf.rounds" else NEEDED
    words = [f"--part={path}", *(f"--part.{name}={needed[name]}" for name in required)]
    try:
        parsed = parser.parse_args([*words, f"--part.{option}={value}"])
        refuse_all_misfits(parsed)
        parser.instantiate_classes(parsed)
    except (ArgumentError, LitRLHFError, ValueError, TypeError) as error:
        own = own_error(error)
        said = str(own) if own else describe(str(error))
        assert said
        assert "\n" not in said
        assert "Traceback" not in said
        assert len(said) < 600
        others = (
            "must be given",
            "isn't installed",
            "watches nothing",
        )  # what else is wrong with it
        named = option in said or any(words in said for words in others)
        assert named or (own and "null" in said), said
        # What isn't ours and isn't the parser's was raised by code that took the value.
        assert "can't be made" not in said or "lit_rlhf" not in said, said


GENERATE = {"model": "data/tiny-model", "prompt": "hello", "sampling.max_new_tokens": "2"}
COMMAND_LINES: dict[str, tuple[dict[str, str], list[str]]] = {
    "generate": (
        GENERATE,
        [
            "model",
            "prompts",
            "prompt",
            "prompt_column",
            "output",
            "num_samples",
            "num_best",
            "batch_size",
            "dtype",
            "seed",
            "keep",
            "reward",
            "engine",
            "sampling.max_new_tokens",
            "sampling.temperature",
            "sampling.top_k",
            "sampling.top_p",
        ],
    ),
    "score": (
        {"model": "data/tiny-model", "data": "rows.jsonl"},
        ["model", "data", "output", "prompt_column", "completion_column", "batch_size", "dtype"],
    ),
    "export": ({"ckpt_path": "a.ckpt", "output": "out"}, ["ckpt_path", "output", "merge", "role"]),
    "verify": ({}, ["methods", "model"]),
    "annotate": (
        {"output": "labels", "export": "votes.jsonl"},
        [
            "data",
            "output",
            "source",
            "format",
            "skip_invalid",
            "uncertainty",
            "raters_per_pair",
            "comments",
            "markdown",
            "host",
            "port",
            "token",
            "seed",
            "export",
        ],
    ),
}


@pytest.mark.parametrize(
    ("command", "option", "value"),
    shared(
        [(c, o, v) for c, (_, options) in COMMAND_LINES.items() for o in options for v in VALUES]
    ),
)
def test_commands(
    command: str,
    option: str,
    value: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command in COMMANDS
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(world / "data")
    (tmp_path / "rows.jsonl").symlink_to(world / "rows.jsonl")
    given = {**COMMAND_LINES[command][0], option: value}
    code: Any = 0
    try:
        main([command, *(f"--{name}={word}" for name, word in given.items())])
    except SystemExit as stopped:
        code = stopped.code
    shown = capsys.readouterr().err
    assert code in (0, 2), shown
    assert "Traceback" not in shown
    said = [line for line in shown.splitlines() if line.startswith(f"lit-rlhf {command}: ")]
    assert len(said) == (code == 2), shown


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--model=none", "--prompt=Hello"],
        ["score", "--model=none", "--data=rows.jsonl"],
        ["label", "rows.jsonl", "--judge=LocalJudge", "--judge.backbone.name=none"],
        ["evaluate-reward", "--path=none", "--data=rows.jsonl"],
        ["report", "none"],
        ["schema"],
        ["data", "inspect", "rows.jsonl"],
        ["data", "convert", "rows.jsonl"],
    ],
    ids=lambda words: " ".join(words[:2] if words[0] == "data" else words[:1]),
)
@pytest.mark.parametrize("output", ["", "there.html"])
def test_an_output_that_is_a_directory_is_refused_before_any_work(
    words: list[str], output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    named = [f"--output={output}"] if words[:2] != ["data", "convert"] else [output]
    with pytest.raises(SystemExit) as stopped:
        main([*words, *named])
    assert stopped.value.code == 2
    assert "names no file, but a directory" in capsys.readouterr().err
