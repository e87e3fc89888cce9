"""`lit-rlhf data`: formats named, rows shown, files converted and read again."""

import contextlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from lit_rlhf import data
from lit_rlhf.cli import main
from lit_rlhf.data import FileSource
from lit_rlhf.data.recognition import MODULES, first_rows, read_as
from lit_rlhf.testing import make_tokenizer, write_jsonl
from tests.unit.data.shape_cases import READS_TOOLS

SHAPES = Path(__file__).parents[1] / "unit" / "data" / "shapes"
ALL = sorted(path.stem for path in SHAPES.glob("*.jsonl"))


def shape(name: str) -> str:
    return str(SHAPES / f"{name}.jsonl")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.mark.parametrize("name", ALL)
def test_every_shape_is_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "show", shape(name)])
    out = capsys.readouterr().out
    assert re.match(r"format: \w+\(.*\)\nkind:   \w+, for \w+DataModule\n", out)
    assert "prompt (not learned): " in out


def test_tokens_and_what_is_learned(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save_pretrained(tmp_path)
    arguments = ["data", "show", shape("hh"), f"--tokenizer={tmp_path}", "--row=2"]
    main([*arguments, "--color=always"])
    out = capsys.readouterr().out
    assert "format: AsChat(ImplicitPrompt())" in out
    prompt, chosen, rejected = out.splitlines()[-3:]
    assert prompt == (
        "\033[34mprompt (9 tokens, not learned): <|user|>|S|a|y| |h|i|.|<|assistant|>\033[0m"
    )
    assert chosen == "\033[32mchosen (4 tokens, learned): H|i|!|<eos>\033[0m"
    assert rejected.startswith("\033[32mrejected (9 tokens, learned): G|o| |a|w|a|y|.|<eos>")
    main(arguments)
    assert "\033" not in capsys.readouterr().out  # no terminal


def test_columns_beside_a_prompt_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "q", "responses": ["a", "b"], "ranking": [2, 1]}\n'
    )
    main(["data", "show", str(tmp_path / "a.jsonl")])
    said = "responses, ranking. If they are answers, add --format Ranked --format.completions responses --format.ranks"
    assert f"columns for the rewards: {said}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"Question": "q", "Answer": "a"}, "demonstrations"),
        ({"input": "q", "output": "a"}, "demonstrations"),
        ({"dialog": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "demonstrations"),
        ({"question": "q", "better": "a", "worse": "b"}, "pairs"),
        ({"prompt": "q", "preferred": "a", "dispreferred": "b"}, "pairs"),
        ({"prompt": "q", "answer_a": "a", "answer_b": "b", "winner": "model_b"}, "pairs"),
        ({"prompt": "q", "response": "a", "rating": 4}, "unpaired"),
        ({"query": "q", "answers": ["a", "b"], "ratings": [1, 2]}, "rankings"),
        ({"question": "q", "responses": ["a", "b"], "ranking": [1, 2]}, "rankings"),
        ({"content": "a"}, "text"),
        ({"question": "q", "steps": ["a", "b"], "step_labels": [1, 0]}, "steps"),
        ({"question": "q", "completions": ["a", "b"], "labels": [True, False]}, "steps"),
        ({"question": "q", "topic": "t"}, "prompts"),
    ],
)  # fmt: skip
def test_columns_of_other_names_are_read_by_the_options_that_are_proposed(
    row: dict[str, Any], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [row] * 2))
    with contextlib.suppress(SystemExit):  # a bare `prompt` makes rows that can be read
        main(["data", "show", path])
    captured = capsys.readouterr()
    found = re.search(r"add (--format .*) \(in Python", captured.out + captured.err)
    assert found is not None, captured
    main(["data", "show", path, *shlex.split(found[1])])
    assert f"kind:   {kind}," in capsys.readouterr().out


def test_nothing_is_proposed_of_names_that_say_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of `response_a` nobody but their owner knows whether it is the better one."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": 1, "response_a": "a", "response_b": 2}])
    with pytest.raises(SystemExit):
        main(["data", "show", str(path)])
    said = capsys.readouterr().err
    assert "mean what they say" not in said
    assert "Nearest: " in said
    assert "(--format ExplicitPrompt --format.prompt COLUMN --format.chosen COLUMN" in said


def test_answers_with_labels_are_not_proposed_as_steps_and_a_number_for_the_winner_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In many data sets 1 is the second answer, counted from 0."""
    rows = [{"prompt": "q", "responses": ["a", "b"], "labels": [1, 0]}]
    main(["data", "show", str(write_jsonl(tmp_path / "answers.jsonl", rows))])
    assert "--format Steps" not in capsys.readouterr().out
    rows = [{"prompt": "q", "answer_a": "a", "answer_b": "b", "winner": w} for w in (0, 1)]
    main(["data", "show", str(write_jsonl(tmp_path / "pairs.jsonl", rows))])
    assert "1 in 'winner' then says that 'answer_a' is the better" in capsys.readouterr().out


def test_the_first_row_that_can_be_used_is_shown_with_the_ends_of_its_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": prompt, "completion": "begin" + 9_000 * "x" + "end"} for prompt in ("", "Why?")
    ]
    main(["data", "show", str(write_jsonl(tmp_path / "a.jsonl", rows))])
    out = capsys.readouterr().out
    assert "row 2, the first that can be used" in out
    assert "row 1: empty prompt" in out
    assert re.search(r"answer \(learned\): beginx+ \[\.\.\. 6,008 characters \.\.\.\] x+end\n", out)


def test_calls_of_tools_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "show", shape("messages_tools")])
    said = '[assistant] {"name": "weather", "arguments": {"city": "Rome"}} [tool] sunny'
    assert said in capsys.readouterr().out


def test_what_is_said_of_answers_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "subset": "x", "other": 1}
    rated = {**pair, "margin": 2.5, "p_chosen": 0.75, "attributes": [[3, 0.5], [1, 4]]}
    write_jsonl(tmp_path / "a.jsonl", [rated])
    main(["data", "show", str(tmp_path / "a.jsonl")])
    out = capsys.readouterr().out
    assert "chosen (margin 2.5, p_chosen 0.75, rated 3, 0.5) (learned): a" in out
    assert "rejected (rated 1, 4) (learned): b" in out
    assert "columns that are not read: other\n" in out


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ALL)
def test_what_is_converted_reads_the_same(
    name: str, suffix: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    output = tmp_path / f"out{suffix}"
    main(["data", "convert", shape(name), str(output)])
    kind = read_as(first_rows(FileSource(shape(name))), name, None, None).kind
    batches = []
    if name == "messages_tools":
        tokenizer.chat_template = READS_TOOLS + tokenizer.chat_template
    for path in (shape(name), str(output)):
        if name in ("hh", "nectar"):  # transcripts stay text
            tokenizer.chat_template = None
        module = getattr(data, MODULES[kind])(
            FileSource(path), tokenizer=tokenizer, batch_size=1, cache_dir=str(tmp_path / "cache")
        )
        module.prepare_data()
        module.setup("fit")
        rows = module.rows["train"]
        batches.append(
            [
                {key: value for key, value in dict(rows[i]).items() if key != "row"}
                for i in range(len(rows))
            ]
        )
    assert batches[0] == batches[1] != []


def test_convert_counts_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    main(["data", "convert", shape("helpsteer2_preference"), str(output)])
    assert "Wrote 2 pairs" in (said := capsys.readouterr().out)
    assert "1 left out, pair of equals" in said
    assert set(json.loads(output.read_text().splitlines()[0])) == {
        "prompt",
        "chosen",
        "rejected",
        "margin",
    }
    output.unlink()
    with pytest.raises(SystemExit):
        main(["data", "convert", shape("helpsteer2_preference"), str(output), "--invalid=error"])
    assert "row 3: pair of equals" in capsys.readouterr().err


def test_numbers_that_parquet_cannot_hold_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "2 ** 70 =", "answer": 2**70}])
    with pytest.raises(SystemExit):
        main(["data", "convert", str(rows), str(tmp_path / "out.parquet")])
    assert "Write JSONL" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


def test_what_is_inspected_is_said_and_written(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    output = tmp_path / "out" / "a.html"
    held_out = [f"--val={shape('skywork')}", f"--test={shape('hh')}"]
    against = f"--against=[{shape('ultrafeedback_raw')}, {shape('alpaca')}]"
    made = [f"--tokenizer={tmp_path / 'tokenizer'}", f"--output={output}", "--run=2", "--samples=1"]
    main(["data", "inspect", shape("skywork"), *held_out, against, *made])
    *said, path = capsys.readouterr().out.splitlines()
    assert path == str(output)
    assert "! val stands in train: 2 of its 2 rows (100 %)" in said[0]
    assert any(line.startswith("! ultrafeedback_raw.jsonl stands in train") for line in said)
    found = json.loads(output.with_suffix(".json").read_text())
    assert [split["lengths"]["unit"] for split in found["splits"]] == ["tokens"] * 3
    assert [split["format"] for split in found["splits"]][2] == "AsChat(ImplicitPrompt())"
    assert len(found["leaks"]) == 9
    assert output.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "nowhere.jsonl"], "no file nowhere.jsonl"),
        (["inspect", shape("hh"), "--val=nowhere.jsonl"], "no file nowhere.jsonl"),
        (["inspect", shape("hh"), "--against=nowhere.jsonl"], "no file nowhere.jsonl"),
        (["inspect", shape("hh"), "--output=a.txt"], r"a\.txt' must end in \.html"),
        (["inspect", shape("hh"), "--similarity=2"], "similarity must be above 0"),
        (["inspect", shape("hh"), "--kind=steps"], "no steps"),
        (["show", "nowhere.jsonl"], "no file nowhere.jsonl"),
        (["show", shape("hh"), "--row=9"], "no row 9"),
        (["show", shape("hh"), "--kind=steps"], r"no steps; .*pairs \(by ImplicitPrompt"),
        (["show", shape("hh"), "--format=Ranked"], r"hh\.jsonl.*no column 'prompt'"),
        (["show", shape("hh"), "--tokenizer=./nowhere"], "nowhere' doesn't exist"),
        (["convert", shape("hh"), "out.csv"], r"\.jsonl or \.parquet"),
        (["convert", shape("hh"), "a.jsonl", "--output=b"], r"no option --output\. lit-rlhf data"),
        (["forget", shape("hh")], r"show \| inspect \| convert"),
        (["show"], "path must be given: lit-rlhf data show --help"),
        (
            ["show", shape("hh"), "--kind=promts"],
            "kind: Expected one of 'steps', .*Got value: promts",
        ),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert re.search(words, said)
    assert said.count("\n") == 2


def test_a_file_is_not_converted_into_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "own.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    before = path.read_bytes()
    with pytest.raises(SystemExit):
        main(["data", "convert", str(path), f"{tmp_path}/../{tmp_path.name}/own.jsonl"])
    assert "would replace" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_the_row_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps(good), "{torn", json.dumps({"x": 1}), json.dumps(good)]))
    for row, words in ((2, "no JSON"), (3, "no column 'prompt'")):
        with pytest.raises(SystemExit):
            main(["data", "show", str(path), f"--row={row}"])
        assert re.search(rf"row {row}: .*{words}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.csv", b"prompt,chosen,rejected\n", "holds no rows"),
        (
            "a.csv",
            "prompt,chosen,rejected\na,\xe9,c\n".encode("latin-1"),
            "line 2 is no utf-8 text",
        ),
        ("a.jsonl", b"prompt: a\n", "line 1 is no JSON"),
    ],
)
@pytest.mark.parametrize("command", ["show", "convert", "inspect"])
def test_files_without_a_row_that_can_be_read_say_why(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
    content: bytes,
    said: str,
) -> None:
    (tmp_path / name).write_bytes(content)
    output = {"convert": [str(tmp_path / "out.jsonl")]}.get(command, [])
    with pytest.raises(SystemExit):
        main(["data", command, str(tmp_path / name), *output])
    assert said in capsys.readouterr().err


def test_half_characters_are_shown_and_converted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "\\ud800 b", "rejected": "c"}\n')
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    main(["data", "show", str(rows)])
    main(["data", "convert", str(rows), str(out)])
    assert json.loads(out.read_text()) == json.loads(rows.read_text())
    for refused in (
        ["convert", str(rows), str(tmp_path / "out.parquet")],
        ["show", str(rows), f"--tokenizer={tmp_path / 'tokenizer'}"],
    ):
        with pytest.raises(SystemExit):
            main(["data", *refused])
    said = capsys.readouterr().err
    assert "Write JSONL." in said
    assert f"{rows}, row 1: text that the tokenizer can't read" in said


def test_columns_that_are_not_written_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": 1, "prompt": "a", "chosen": "b", "rejected": "c", "Margin": 2, "rater": "d"}
    write_jsonl(tmp_path / "a.jsonl", [row])
    main(["data", "convert", str(tmp_path / "a.jsonl"), str(tmp_path / "out.jsonl")])
    assert "Columns that are not written: Margin, rater." in capsys.readouterr().out


def test_splits_on_disk_are_named_with_the_way_to_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(SystemExit):
        main(["data", "show", str(tmp_path / "both")])
    assert "give the directory of one as the path" in capsys.readouterr().err
    main(["data", "show", str(tmp_path / "both" / "train")])
