"""Rows as public data sets have them: read as meant, or left out with a count, never read otherwise."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from tokenizers import processors
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from lit_rlhf.data import (
    AsChat,
    ChosenOf,
    Conversation,
    DemonstrationDataModule,
    ExplicitPrompt,
    FileSource,
    Format,
    ImplicitPrompt,
    InvalidRowError,
    PairsFromRanking,
    PreferenceDataModule,
    ProcessDataModule,
    PromptDataModule,
    Ranked,
    RowsSource,
    SharedPrefix,
    Steps,
    Unpaired,
    UnpairedDataModule,
    UnpairedFromPairs,
)
from lit_rlhf.data.encoding import Encoder
from lit_rlhf.data.records import Record
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.testing import make_tokenizer
from tests.unit.data.contract import ready

USER = {"role": "user", "content": "hi"}
WHY = {"role": "user", "content": "why?"}
GOOD = {"role": "assistant", "content": "hello"}
PAIR = {"prompt": "p", "chosen": " a", "rejected": " b"}


def decoded(tokenizer: PreTrainedTokenizerFast, record: Record) -> list[str]:
    encoded = Encoder(tokenizer)(record)
    return [tokenizer.decode(ids) for ids in (encoded.prompt, *encoded.completions)]


class TestFormatsThatMeanSomethingElse:
    @pytest.mark.parametrize(
        ("format_", "row"),
        [
            (ChosenOf(Unpaired()), {"prompt": "p", "completion": "a", "label": False}),
            (ChosenOf(Ranked()), {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}),
            (
                UnpairedFromPairs(Ranked()),
                {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]},
            ),
            (ChosenOf(Steps()), {"prompt": "p", "completions": ["a", "b"], "labels": [1, 0]}),
            (PairsFromRanking(ExplicitPrompt()), PAIR),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_wrappers_refuse_what_is_not_theirs(self, format_: Format, row: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match="needs a format that gives"):
            format_(row)

    def test_scores_are_no_pairs(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = RowsSource([{"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}])
        module = PreferenceDataModule(rows, tokenizer=tokenizer, format=Ranked())
        with pytest.raises(
            ConfigurationError, match=r"fields \['score'\], which this DataModule would not read"
        ):
            module.prepare_data()

    @pytest.mark.parametrize("fields", [{"p_chosen": 0.2}, {"margin": -1.0}])
    def test_the_preferred_one_is_the_one_that_the_numbers_prefer(
        self, fields: dict[str, float]
    ) -> None:
        row = {**PAIR, **fields}
        assert ChosenOf(ExplicitPrompt())(row)[0].completions == (" b",)
        first, second = UnpairedFromPairs(ExplicitPrompt())(row)
        assert (first.completions, first.fields) == ((" b",), {"label": True})
        assert (second.completions, second.fields) == ((" a",), {"label": False})

    @pytest.mark.parametrize("row", [{**PAIR, "rejected": " a"}, {**PAIR, "p_chosen": 0.5}])
    def test_equals_are_neither_good_nor_bad(self, row: dict[str, Any]) -> None:
        with pytest.raises(InvalidRowError, match="pair of equals"):
            UnpairedFromPairs(ExplicitPrompt())(row)


class TestChats:
    def test_steps_stay_steps(self, tokenizer: PreTrainedTokenizerFast) -> None:
        row = {"prompt": "p", "completions": ["a", "b"], "labels": [1, 0]}
        (record,) = AsChat(Steps())(row)
        assert decoded(tokenizer, record) == ["<|user|>p<|assistant|>", "a\n", "b<eos>"]
        batch = next(
            iter(
                ready(
                    ProcessDataModule(
                        RowsSource([row]), tokenizer=tokenizer, format=AsChat(Steps()), batch_size=1
                    )
                ).train_dataloader()
            )
        )
        assert batch["step_end"].tolist() == [[1, 3]]

    def test_a_row_has_one_system_turn(self) -> None:
        system = {"role": "system", "content": "mine"}
        (record,) = AsChat(ExplicitPrompt(), system="yours")({**PAIR, "prompt": [system, USER]})
        assert [turn["content"] for turn in record.prompt] == ["mine", "hi"]  # type: ignore[index]

    @pytest.mark.parametrize(
        "content",
        [
            [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo", "image": None}],
            ["hel", "lo"],
            [{"text": "hello"}],
        ],
    )
    def test_text_parts_are_joined(self, tokenizer: PreTrainedTokenizerFast, content: Any) -> None:
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "message['content'] ", "message['content'] | trim "
        )
        row = {"messages": [USER, {"role": "assistant", "content": content}]}
        assert decoded(tokenizer, Conversation()(row)[0])[1] == "hello<eos>"

    @pytest.mark.parametrize(
        "content",
        [[{"type": "image", "url": "x"}], {"text": "a"}, 5, [5], None, [{"type": "text"}]],
    )
    def test_other_contents_are_left_out(self, content: Any) -> None:
        with pytest.raises(InvalidRowError, match="a message of column 'messages' h"):
            Conversation()({"messages": [USER, {"role": "assistant", "content": content}]})

    def test_a_prefilled_answer_is_gone_on_with(self, tokenizer: PreTrainedTokenizerFast) -> None:
        row = {"prompt": [USER, {"role": "assistant", "content": "hel"}], "completion": "lo"}
        (record,) = [Record(row["prompt"], ([{"role": "assistant", "content": "lo"}],))]
        assert decoded(tokenizer, record) == ["<|user|>hi<|assistant|>hel", "lo<eos>"]

    def test_tools_reach_the_template(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.chat_template = (
            "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{{ mood }}"
            + tokenizer.chat_template
        )
        tool = {"type": "function", "function": {"name": "w", "description": None}}
        for tools in ([tool], json.dumps([tool])):
            row = {"messages": [USER, GOOD], "tools": tools, "chat_template_kwargs": {"mood": "!"}}
            module = ready(
                DemonstrationDataModule(
                    RowsSource([row]), tokenizer=tokenizer, format=Conversation(), batch_size=1
                )
            )
            prompt = tokenizer.decode(module.rows["train"][0]["prompt_ids"])
            assert prompt == "[w]!<|user|>hi<|assistant|>"

    @pytest.mark.parametrize(
        ("column", "name"),
        [({"tools": [{"name": "w"}]}, "tools"), ({"chat_template_kwargs": {"mood": "!"}}, "mood")],
    )
    def test_what_the_template_does_not_read_would_be_lost(
        self, column: dict[str, Any], name: str, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        rows = RowsSource([{"messages": [USER, GOOD], **column}, {"messages": [USER, GOOD]}])
        module = ready(DemonstrationDataModule(rows, tokenizer=tokenizer, batch_size=1))
        report = module.reports["train"]
        assert report.counts == {"the chat template doesn't read what the row gives it": 1}
        assert f"row 1: {name} would be lost" in report.summary()

    def test_tools_of_plain_text_would_be_lost(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = RowsSource([{"prompt": "p", "completion": "a", "tools": [{"name": "w"}]}])
        with pytest.raises(DataError, match="the row has tools, and its prompt is plain text"):
            DemonstrationDataModule(rows, tokenizer=tokenizer).prepare_data()
        carried = RowsSource([{"prompt": "p", "tools": [{"name": "w"}]}])
        module = ready(PromptDataModule(carried, tokenizer=tokenizer, batch_size=1))
        assert module.rows["train"][0]["columns"] == {"tools": [{"name": "w"}]}

    def test_a_template_like_mistrals_needs_no_generation_prompt(self) -> None:
        tokenizer = make_tokenizer()
        tokenizer.chat_template = (
            "<bos>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
            "{% else %} {{ m.content }}<eos>{% endif %}{% endfor %}"
        )
        assert decoded(tokenizer, Record([USER], ([GOOD],))) == [
            "<bos>[INST] hi [/INST]",
            " hello<eos>",
        ]

    def test_a_header_before_the_answer_alone_is_no_generation_prompt(self) -> None:
        tokenizer = make_tokenizer()
        tokenizer.chat_template = (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
        )
        with pytest.raises(
            ConfigurationError, match=r"no generation prompt.*begin with '<\|assistant\|>'"
        ):
            Encoder(tokenizer)(Record([USER], ([GOOD],)))

    def test_text_that_a_template_strips_is_said(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "message['content'] + eos", "message['content'].split('</think>')[-1] + eos"
        )
        thought = {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4"}
        rows = RowsSource([{"messages": [USER, answer]} for answer in (thought, GOOD, GOOD)])
        module = ready(
            DemonstrationDataModule(rows, tokenizer=tokenizer, format=Conversation(), batch_size=1)
        )
        report = module.reports["train"]
        assert report.counts == {"the chat template leaves out text of the answer": 1}
        assert (
            "tokenizer.chat_template" in report.summary()
            and "reasoning_content" in report.summary()
        )


class TestAnswers:
    def test_transcripts_that_go_on_are_left_out(self) -> None:
        start = "\n\nHuman: hi\n\nAssistant:"
        for rest in (" go\n\nHuman: why\n\nAssistant: so", " go\n\nHuman: why"):
            for pair in ((" hello", rest), (rest, " hello")):
                row = {"chosen": start + pair[0], "rejected": start + pair[1]}
                with pytest.raises(InvalidRowError):
                    ImplicitPrompt()(row)
                with pytest.raises(InvalidRowError, match=r"is a transcript.*use ImplicitPrompt"):
                    SharedPrefix()(row)

    @pytest.mark.parametrize("rest", [[WHY], [GOOD, WHY], [GOOD, WHY, GOOD]])
    def test_an_answer_is_the_assistants(self, rest: list[dict[str, str]]) -> None:
        with pytest.raises(InvalidRowError, match="goes on for more than one answer"):
            ImplicitPrompt()({"chosen": [USER, GOOD], "rejected": [USER, *rest]})
        with pytest.raises(InvalidRowError, match="completion is no answer"):
            ExplicitPrompt()({"prompt": [USER], "chosen": [GOOD], "rejected": rest})

    @pytest.mark.parametrize("text", [" x", " x<eos>", " x<eos><eos>", " x<eos>\n"])
    @pytest.mark.parametrize("adds", [False, True])
    def test_one_eos(self, adds: bool, text: str) -> None:
        tokenizer = make_tokenizer()
        if adds:
            tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single="<bos> $A <eos>",
                special_tokens=[
                    (t, tokenizer.convert_tokens_to_ids(t)) for t in ("<bos>", "<eos>")
                ],
            )
        assert decoded(tokenizer, Record("q:", (text,)))[1] == " x<eos>"

    def test_a_repeated_answer_costs_its_pair_alone(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        row = {"prompt": "q", "completions": [" A", " B", " B", " C"], "scores": [4, 3, 2, 1]}
        module = ready(
            PreferenceDataModule(
                RowsSource([row]),
                tokenizer=tokenizer,
                format=PairsFromRanking(Ranked()),
                batch_size=1,
            )
        )
        assert len(module.rows["train"]) == 5
        assert module.reports["train"].counts == {"identical pair": 1}
        assert "5 of 6 pairs of 1 rows used" in module.reports["train"].summary()


class TestColumns:
    def test_optional_columns_are_optional(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = [{**PAIR, "margin": 1.0}, *({**PAIR, "prompt": f"{n}"} for n in range(9))]
        module = ready(PreferenceDataModule(RowsSource(rows), tokenizer=tokenizer, batch_size=5))
        assert module.reports["train"].counts == {}
        assert "9 have no margin, 0 is taken" in module.reports["train"].summary()
        margins = torch.cat([batch["margin"] for batch in module.train_dataloader()])
        assert sorted(margins.tolist()) == [0.0] * 9 + [1.0]

    @pytest.mark.parametrize(
        ("bad", "good"), [(-1, 1), ("-1", "1"), (0, 1), (False, True), ("-1.0", "1.0")]
    )
    def test_labels(self, bad: Any, good: Any, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = [{"prompt": "a", "completion": " x", "label": label} for label in (bad, good)]
        module = ready(UnpairedDataModule(RowsSource(rows), tokenizer=tokenizer, batch_size=1))
        assert [module.rows["train"][n]["fields"]["label"] for n in (0, 1)] == [False, True]

    def test_a_class_that_vanishes_ends_the_run(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = [{"prompt": "a", "completion": " x", "label": label} for label in (1, 1, "no")]
        module = UnpairedDataModule(RowsSource(rows), tokenizer=tokenizer)
        with pytest.raises(
            DataError, match="one class is left out: labels are true or false, 1 or 0"
        ):
            module.prepare_data()

    def test_most_of_the_data_is_not_dropped(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = RowsSource([PAIR, {"prompt": "q"}, {"prompt": "r"}])
        with pytest.raises(
            DataError, match=r"67% can't be used, more than max_invalid \(50%\) allows"
        ):
            PreferenceDataModule(rows, tokenizer=tokenizer).prepare_data()
        module = PreferenceDataModule(rows, tokenizer=tokenizer, max_invalid=0.7)
        assert len(ready(module).rows["train"]) == 1


class TestFiles:
    @pytest.mark.parametrize("prompt", ["bad \ud83d", [{"role": "user", "content": "bad \ud83d"}]])
    def test_half_a_character_is_left_out(
        self, prompt: Any, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        rows = [{"prompt": "ok", "completion": " fine"}, {"prompt": prompt, "completion": " x"}]
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        module = ready(
            DemonstrationDataModule(FileSource(str(path)), tokenizer=tokenizer, batch_size=1)
        )
        assert module.reports["train"].counts == {"text that the tokenizer can't read": 1}
        assert f"{path}, row 2" in module.reports["train"].summary()

    def test_a_line_that_is_no_json_is_left_out(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        good = json.dumps({"prompt": "a", "completion": " b"}).encode()
        (tmp_path / "a.jsonl").write_bytes(
            b"\n".join([good, b"{", b"[1]", good, b'{"prompt": "\xff"}', good])
        )
        module = ready(
            DemonstrationDataModule(
                FileSource(str(tmp_path / "a.jsonl")), tokenizer=tokenizer, batch_size=1
            )
        )
        assert module.reports["train"].counts == {"no JSON": 1, "no object": 1, "no utf-8 text": 1}

    @pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.jsonl.gz"])
    def test_byte_order_marks_are_no_text(self, tmp_path: Path, name: str) -> None:
        text = {"csv": "a,b\n1,2\n", "tsv": "a\tb\n1\t2\n", "json": '[{"a": "1", "b": "2"}]'}.get(
            name.split(".")[1], '{"a": "1", "b": "2"}\n'
        )
        content = text.encode("utf-8-sig")
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        assert list(FileSource(str(tmp_path / name)).load()) == [{"a": "1", "b": "2"}]

    @pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
    def test_torn_archives_are_named(
        self, suffix: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        rows = "".join(
            json.dumps({"prompt": f"{n}", "completion": f"{n * 7919}"}) + "\n" for n in range(500)
        )
        codec = {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}.get(suffix)
        path = tmp_path / f"a.jsonl.{suffix}"
        if codec is None:
            import lzma

            path.write_bytes(lzma.compress(rows.encode()))
        else:
            with pa.output_stream(str(path), compression=codec) as stream:
                stream.write(rows.encode())
        assert len(list(FileSource(str(path)).load())) == 500
        content = bytearray(path.read_bytes())
        if suffix == "zst":  # has no checksum
            del content[len(content) // 2 :]
        content[len(content) // 2 : len(content) // 2 + 40] = b"\xa5" * 40
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.jsonl\.{suffix}.* can't be read") as caught:
            DemonstrationDataModule(FileSource(str(path)), tokenizer=tokenizer).prepare_data()
        assert "Make room" not in str(caught.value)

    def test_a_torn_parquet_file_is_named(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        path = tmp_path / "a.parquet"
        rows = [{"prompt": f"{n}", "completion": f"{n * 7919}"} for n in range(500)]
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
        content = bytearray(path.read_bytes())
        content[100:900] = b"\xa5" * 800
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.parquet is no Parquet file, or a torn one"):
            DemonstrationDataModule(FileSource(str(path)), tokenizer=tokenizer).prepare_data()


class TestLayouts:
    @pytest.fixture
    def model(self, tokenizer: PreTrainedTokenizerFast) -> LlamaForSequenceClassification:
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
        )
        return LlamaForSequenceClassification(config)

    @pytest.mark.parametrize(
        "kind", [PreferenceDataModule, DemonstrationDataModule, PromptDataModule]
    )
    def test_a_branched_batch_fails_in_an_ordinary_model(
        self, kind: Any, tokenizer: PreTrainedTokenizerFast, model: LlamaForSequenceClassification
    ) -> None:
        rows = RowsSource(
            [{**PAIR, "completion": " a"}, {**PAIR, "prompt": "longer", "completion": " a"}]
        )
        batch = next(iter(ready(kind(rows, tokenizer=tokenizer, batch_size=2)).train_dataloader()))
        for key in ("index", "columns", "branch_ids"):
            batch.pop(key, None)
        with pytest.raises(ConfigurationError, match=r"This batch is branched.*layout: rows"):
            model(**batch)

    @pytest.mark.parametrize(
        ("kind", "name"),
        [(PreferenceDataModule, "chosen_input_ids"), (DemonstrationDataModule, "labels")],
    )
    def test_a_branched_batch_says_so_in_a_module_of_ones_own(
        self, kind: Any, name: str, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        rows = RowsSource([{**PAIR, "completion": " a"}] * 2)
        data = ready(kind(rows, tokenizer=tokenizer, batch_size=1))
        batch = move_data_to_device(next(iter(data.train_dataloader())), torch.device("cpu"))
        assert name not in batch
        with pytest.raises(ConfigurationError, match=r"This batch is branched.*layout: rows"):
            batch[name]
        with pytest.raises(KeyError, match="nonesuch"):
            batch["nonesuch"]

    def test_rows_are_what_everybody_knows(
        self, tokenizer: PreTrainedTokenizerFast, model: LlamaForSequenceClassification
    ) -> None:
        rows = RowsSource(
            [{**PAIR, "margin": 2.0}, {**PAIR, "prompt": "longer", "rejected": " something else"}]
        )
        module = ready(
            PreferenceDataModule(
                rows, tokenizer=tokenizer, batch_size=2, bucket_batches=1, layout="rows"
            )
        )
        batch = next(iter(module.train_dataloader()))
        sides = ("chosen", "rejected")
        names = {
            f"{side}_{name}" for side in sides for name in ("input_ids", "attention_mask", "labels")
        }
        assert set(batch) == {*names, "margin", "index"}
        texts = {}
        for side in sides:
            ids, mask, labels = (
                batch[f"{side}_{n}"] for n in ("input_ids", "attention_mask", "labels")
            )
            texts[side] = {
                tokenizer.decode(line[keep.bool()]) for line, keep in zip(ids, mask, strict=True)
            }
            learned = {tokenizer.decode(line[line >= 0]) for line in labels}
            assert learned == (
                {" a<eos>"} if side == "chosen" else {" b<eos>", " something else<eos>"}
            )
            assert model(input_ids=ids, attention_mask=mask).logits.shape == (2, 1)
        assert texts["rejected"] == {"p b<eos>", "longer something else<eos>"}

    def test_rows_of_demonstrations(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = RowsSource([{"prompt": "p", "completion": " a"}])
        module = ready(
            DemonstrationDataModule(rows, tokenizer=tokenizer, batch_size=1, layout="rows")
        )
        batch = next(iter(module.train_dataloader()))
        assert set(batch) == {"input_ids", "attention_mask", "labels"}
        assert tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0]) == " a<eos>"


def test_a_report_is_said_as_a_warning(
    caplog: pytest.LogCaptureFixture, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = RowsSource([PAIR, {**PAIR, "prompt": "q"}, {"prompt": "r"}])
    with caplog.at_level(logging.WARNING, logger="lit_rlhf"):
        ready(PreferenceDataModule(rows, tokenizer=tokenizer, batch_size=1))
    assert (
        "2 of 3 rows used; 1 left out, no column 'chosen' (first: rows in memory, row 3"
        in caplog.text
    )
