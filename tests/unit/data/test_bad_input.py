"""What users get wrong with data: an error, or an omission counted and logged, that names file, row and column."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import (
    DemonstrationDataModule,
    ExplicitPrompt,
    FileSource,
    Format,
    ImplicitPrompt,
    PreferenceDataModule,
    PromptDataModule,
    PromptOnly,
    RankedDataModule,
    Record,
    RowsSource,
    UnpairedDataModule,
)
from lit_rlhf.data.records import Row
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.testing import make_tokenizer, tiny_preferences, write_jsonl
from tests.unit.data.contract import ready

GOOD = tiny_preferences(8)


def pair(**values: Any) -> dict[str, Any]:
    return {"prompt": "what is it?", "chosen": "good", "rejected": "bad", **values}


LONG = " and so on" * 20
BAD_ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "empty completion": (pair(chosen=" \n"), "empty completion", "a completion has no text"),
    "empty prompt": (pair(prompt=""), "empty prompt", "column 'prompt' is empty"),
    "identical pair": (pair(rejected="good"), "identical pair", "have the same 5 tokens"),
    "missing column": (
        {"prompt": "q", "chosen": "a"},
        "no column 'rejected'",
        r"columns are \['chosen', 'prompt'\]",
    ),
    "missing value": (pair(rejected=None), "no value in column 'rejected'", "missing"),
    "wrong type": (pair(chosen=["a"]), "column 'chosen' is neither text nor messages", "got list"),
    "label out of range": (pair(p_chosen=1.5), "column 'p_chosen' is out of range", "got 1.5"),
    "prompt too long": (
        pair(prompt=LONG),
        "prompt too long",
        "200 tokens, max_prompt_length is 60",
    ),
    "completion too long": (
        pair(chosen=LONG),
        "completion too long",
        "201 tokens, max_completion_length is 70",
    ),
}
LIMITS = {"max_prompt_length": 60, "max_completion_length": 70}


class TestRowsThatCannotBeUsed:
    @pytest.mark.parametrize("case", BAD_ROWS)
    def test_they_are_left_out_counted_and_logged(
        self,
        case: str,
        tmp_path: Path,
        tokenizer: PreTrainedTokenizerFast,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        row, reason, _ = BAD_ROWS[case]
        path = write_jsonl(tmp_path / "pairs.jsonl", [*GOOD[:3], row, *GOOD[3:], row])
        for _ in range(2):  # the second time from the cache: it is said again
            caplog.clear()
            with caplog.at_level(logging.WARNING, logger="lit_rlhf"):
                module = ready(
                    PreferenceDataModule(FileSource(str(path)), tokenizer=tokenizer, **LIMITS)
                )
            assert module.reports["train"].counts == {reason: 2}
            assert len(module.rows["train"]) == 8
            assert [module.rows["train"][place]["row"] for place in range(8)] == [
                0,
                1,
                2,
                4,
                5,
                6,
                7,
                8,
            ]
            (message,) = caplog.messages
            assert (
                f"{path}: 8 of 10 rows used; 2 left out, {reason} (first: {path}, row 4: "
                in message
            )

    @pytest.mark.parametrize("case", BAD_ROWS)
    def test_they_end_the_run_when_told_to(
        self, case: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        row, reason, detail = BAD_ROWS[case]
        path = write_jsonl(tmp_path / "pairs.jsonl", [*GOOD[:3], row, *GOOD[3:]])
        module = PreferenceDataModule(
            FileSource(str(path)), tokenizer=tokenizer, invalid="error", too_long="error", **LIMITS
        )
        way_out = "too_long: drop or too_long: truncate" if "long" in reason else "invalid: drop"
        with pytest.raises(
            DataError,
            match=rf"1 left out, {reason} \(first: .*pairs\.jsonl, row 4: .*{detail}.*set {way_out}",
        ):
            module.prepare_data()
        assert not list((tmp_path / "cache").iterdir())

    def test_truncation_keeps_long_rows(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = [pair(prompt=f"{n}{LONG}", chosen=LONG) for n in range(4)]
        module = ready(
            PreferenceDataModule(
                RowsSource(rows), tokenizer=tokenizer, too_long="truncate", **LIMITS
            )
        )
        assert module.reports["train"].counts == {}
        assert (
            module.reports["train"].longest_prompt,
            module.reports["train"].longest_completion,
        ) == (60, 70)

    def test_a_pair_that_truncation_makes_identical_is_left_out(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        rows = [*GOOD, pair(chosen=LONG + "a", rejected=LONG + "b")]
        module = ready(
            PreferenceDataModule(
                RowsSource(rows), tokenizer=tokenizer, too_long="truncate", **LIMITS
            )
        )
        assert module.reports["train"].counts == {"identical pair": 1}

    def test_diverging_transcripts_are_left_out_not_mangled(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        turn = "\n\nHuman: hi\n\nAssistant:"
        rows = [
            {"chosen": f"{turn} a", "rejected": f"{turn} b"},
            {
                "chosen": f"{turn} a\n\nHuman: so?\n\nAssistant: x",
                "rejected": f"{turn} b\n\nHuman: so?\n\nAssistant: y",
            },
        ]
        module = ready(
            PreferenceDataModule(RowsSource(rows), tokenizer=tokenizer, format=ImplicitPrompt())
        )
        assert module.reports["train"].counts == {"chosen and rejected have different prompts": 1}

    def test_nothing_left_is_an_error(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        path = write_jsonl(
            tmp_path / "pairs.jsonl", [{"asked": "q", "chosen": "a", "rejected": "b"}] * 3
        )
        module = PreferenceDataModule(FileSource(str(path)), tokenizer=tokenizer)
        with pytest.raises(ConfigurationError, match=r"pairs\.jsonl .*missing: prompt.*`format`"):
            module.prepare_data()
        columns = r"\['asked', 'chosen', 'rejected'\]"
        module = PreferenceDataModule(
            FileSource(str(path)), tokenizer=tokenizer, format=ExplicitPrompt()
        )
        with pytest.raises(
            DataError,
            match=rf"0 of 3 rows used; 3 left out, no column 'prompt' .*row 1.*{columns}.*Nothing is left: name",
        ):
            module.prepare_data()

    def test_an_empty_file_is_an_error(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        path = write_jsonl(tmp_path / "pairs.jsonl", [])
        with pytest.raises(
            DataError,
            match=r"pairs\.jsonl: 0 of 0 rows used. Nothing is left: the source holds no rows",
        ):
            PreferenceDataModule(FileSource(str(path)), tokenizer=tokenizer).prepare_data()

    def test_all_reasons_are_told_at_once(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = [*GOOD, pair(chosen=""), pair(chosen="bad"), pair(chosen="")]
        module = PreferenceDataModule(RowsSource(rows), tokenizer=tokenizer, invalid="error")
        with pytest.raises(
            DataError,
            match=r"8 of 11 rows used; 2 left out, empty completion.*row 9.*; 1 left out, identical pair.*row 10",
        ):
            module.prepare_data()

    def test_columns_that_cannot_be_carried(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = [{"prompt": "p", "answer": 1}, {"prompt": "q", "answer": b"bytes"}, {"prompt": "q"}]
        module = ready(PromptDataModule(RowsSource(rows), tokenizer=tokenizer, batch_size=2))
        assert module.reports["train"].counts == {"column can't be carried": 1}
        (batch,) = (
            module.train_dataloader()
        )  # a column that a row lacks is None there, as Arrow has it
        assert sorted(batch["columns"]["answer"], key=repr) == [1, None]

    def test_an_unknown_column_to_carry(self, tokenizer: PreTrainedTokenizerFast) -> None:
        module = PromptDataModule(
            RowsSource([{"prompt": "p"}]),
            tokenizer=tokenizer,
            format=PromptOnly(columns=["answer"]),
        )
        with pytest.raises(DataError, match="no column 'answer'"):
            module.prepare_data()

    @pytest.mark.parametrize(
        ("options", "used", "cut"),
        [
            ({"too_long": "truncate"}, 4, {"prompt": 2, "answer": 2}),
            ({"too_long": "truncate_prompt"}, 2, {"prompt": 1}),
            ({"too_long": "truncate_prompt", "cut_prompt": "end"}, 2, {"prompt": 1}),
            ({"too_long": "drop"}, 1, {}),
        ],
    )
    def test_what_is_cut_is_counted_in_pairs(
        self,
        tokenizer: PreTrainedTokenizerFast,
        caplog: pytest.LogCaptureFixture,
        options: dict[str, Any],
        used: int,
        cut: dict[str, int],
    ) -> None:
        long, short = "abcdefgh", "ab"
        rows = [
            {"prompt": prompt, "chosen": chosen, "rejected": "x" + chosen}
            for prompt in (short, long)
            for chosen in (short, long)
        ]
        limits = {"max_prompt_length": 4, "max_completion_length": 5}
        module = PreferenceDataModule(
            RowsSource(rows), tokenizer=tokenizer, batch_size=1, **limits, **options
        )
        with caplog.at_level("WARNING"):
            report = ready(module).reports["train"]
        assert (report.records, report.truncated) == (used, cut)
        assert sum(report.counts.values()) == 4 - used
        for what, count in cut.items():
            assert f"{count} pairs have their {what} cut" in report.brief()
            assert f"{count} pairs have their {what} cut" in caplog.text

    def test_an_end_that_nothing_cuts_is_refused(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(ConfigurationError, match=r"cut_prompt='end' cuts nothing with too_l"):
            PreferenceDataModule(RowsSource([]), tokenizer=tokenizer, cut_prompt="end")

    def test_identical_completions_of_a_ranking(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = [
            {"prompt": "p", "completions": ["a", "a", "a"], "scores": [1, 2, 3]},
            {"prompt": "p", "completions": ["a", "a", "b"], "scores": [1, 2, 3]},
        ]
        module = ready(RankedDataModule(RowsSource(rows), tokenizer=tokenizer))
        assert module.reports["train"].counts == {"identical completions": 1}

    def test_an_exception_of_a_format_of_ones_own_says_where(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        class Careless(Format):
            def __call__(self, row: Row) -> list[Record]:
                return [Record(row["prompt"], (row["chosen"], row["rejected"]))]

        path = write_jsonl(tmp_path / "pairs.jsonl", [*GOOD[:3], {"prompt": "q"}])
        module = PreferenceDataModule(FileSource(str(path)), tokenizer=tokenizer, format=Careless())
        with pytest.raises(KeyError, match="chosen") as caught:
            module.prepare_data()
        assert f"{path}, row 4" in caught.value.__notes__[0]

    def test_pad_equal_to_eos_keeps_eos_a_token_to_learn(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        """Batches are told apart by `branch_ids`, never by the id of the padding."""
        padded_with_eos = make_tokenizer()
        padded_with_eos.pad_token = padded_with_eos.eos_token
        usual, same = (
            next(
                iter(
                    ready(
                        PreferenceDataModule(RowsSource(GOOD), tokenizer=each, batch_size=8)
                    ).train_dataloader()
                )
            )
            for each in (tokenizer, padded_with_eos)
        )
        tokens = usual["branch_ids"] >= 0
        assert not tokens.all()
        assert torch.equal(same["branch_ids"], usual["branch_ids"])
        assert torch.equal(same["input_ids"][tokens], usual["input_ids"][tokens])
        assert ((same["input_ids"] == tokenizer.eos_token_id) & tokens).sum() == 2 * len(GOOD)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"train": None}, "No data: set at least one of"),
            (
                {"val_fraction": 1.0},
                "val_fraction=1.0.: val_fraction must be at least 0 and below 1",
            ),
            ({"val_fraction": -0.1}, "val_fraction=-0.1"),
            (
                {"val_fraction": 0.1, "val": RowsSource(GOOD)},
                "val_fraction is 0.1, which splits `train` where `val` is not",
            ),
            ({"val_fraction": 0.1, "train": None, "test": RowsSource(GOOD)}, "`train` is None"),
            (
                {"batch_size": 0},
                "PreferenceDataModule.batch_size=0.: batch_size must be a whole number of 1 or more",
            ),
            ({"eval_batch_size": 0}, "eval_batch_size=0"),
            ({"max_prompt_length": 0}, "max_prompt_length=0"),
            ({"max_completion_length": -1}, "max_completion_length=-1"),
            ({"pad_to_multiple_of": 0}, "pad_to_multiple_of=0"),
            ({"bucket_batches": 0}, "bucket_batches=0"),
        ],
        ids=lambda value: value if isinstance(value, str) else "-".join(value),
    )
    def test_contradictions_are_refused_at_once(
        self, options: dict[str, Any], message: str, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        with pytest.raises(ConfigurationError, match=message):
            PreferenceDataModule(**{"train": RowsSource(GOOD), "tokenizer": tokenizer, **options})

    def test_prompts_have_no_completions_to_limit(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(
            ConfigurationError, match="max_completion_length is 5, but prompts have no completions"
        ):
            PromptDataModule(RowsSource(GOOD), tokenizer=tokenizer, max_completion_length=5)

    def test_a_tokenizer_that_is_not_there(self, tmp_path: Path) -> None:
        module = PreferenceDataModule(RowsSource(GOOD), tokenizer=str(tmp_path / "nowhere"))
        with pytest.raises(
            ConfigurationError,
            match=r"tokenizer directory '.*nowhere' doesn.t exist \(looked in",
        ):
            module.prepare_data()

    def test_a_format_of_another_kind(self, tokenizer: PreTrainedTokenizerFast) -> None:
        module = PreferenceDataModule(RowsSource(GOOD), tokenizer=tokenizer, format=PromptOnly())
        with pytest.raises(
            ConfigurationError,
            match=r"records with 0 completions, this DataModule needs 2.*`format`",
        ):
            module.prepare_data()
        from lit_rlhf.data import Demonstration

        rows = [{"prompt": "p", "completion": "a"}]
        unlabelled = UnpairedDataModule(
            RowsSource(rows), tokenizer=tokenizer, format=Demonstration()
        )
        with pytest.raises(
            ConfigurationError,
            match=r"fields \[\], this DataModule needs one of \['label', 'score'\]",
        ):
            unlabelled.prepare_data()

    def test_a_batch_larger_than_the_data(self, tokenizer: PreTrainedTokenizerFast) -> None:
        module = ready(PreferenceDataModule(RowsSource(GOOD), tokenizer=tokenizer, batch_size=9))
        module.trainer = Trainer(
            callbacks=[BatchSizeFinder()], logger=False, enable_checkpointing=False
        )
        with pytest.raises(
            ConfigurationError, match=r"8 rows don't fill one batch: batch_size 9"
        ) as raised:
            module.train_dataloader()
        assert "BatchSizeFinder tried that size" in raised.value.__notes__[0]

    def test_a_split_that_leaves_a_side_empty(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = [{**row, "prompt": "the same"} for row in GOOD]
        module = PreferenceDataModule(RowsSource(rows), tokenizer=tokenizer, val_fraction=0.5)
        says = r"val_fraction 0\.5 splits the 8 rows of rows in memory into .* on nothing: val_fraction 0"
        with pytest.raises(DataError, match=says):
            ready(module)

    def test_loaders_before_setup(self, tokenizer: PreTrainedTokenizerFast) -> None:
        module = PreferenceDataModule(RowsSource(GOOD), tokenizer=tokenizer)
        with pytest.raises(
            ConfigurationError, match=r"call prepare_data\(\) and setup\('fit'\) first"
        ):
            module.train_dataloader()

    def test_no_chat_template_for_messages(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.chat_template = None
        rows = [{"prompt": [{"role": "user", "content": "hi"}], "completion": "hello"}]
        with pytest.raises(ConfigurationError, match="no chat template"):
            DemonstrationDataModule(RowsSource(rows), tokenizer=tokenizer).prepare_data()


class OneMethod(PreferenceDataModule):
    """A data set of one's own in one method."""

    def records(self, row: Mapping[str, Any]) -> list[Any]:
        from lit_rlhf.data import Record

        good, bad = sorted(row["answers"], key=lambda answer: -answer["votes"])[:2]
        return [
            Record(
                row["question"],
                (good["text"], bad["text"]),
                {"margin": good["votes"] - bad["votes"]},
            )
        ]


def test_a_data_set_of_ones_own(tmp_path: Path) -> None:
    answers = [{"text": "no", "votes": 1}, {"text": "yes", "votes": 5}]
    rows = [{"question": f"{n}?", "answers": answers} for n in range(4)]
    (tmp_path / "forum.json").write_text(json.dumps(rows))
    tokenizer = make_tokenizer()
    module = ready(
        OneMethod(FileSource(str(tmp_path / "forum.json")), tokenizer=tokenizer, batch_size=2)
    )
    batch = next(iter(module.train_dataloader()))
    assert tokenizer.decode(batch["input_ids"][0][batch["branch_ids"][0] == 1]) == "yes<eos>"
    assert batch["margin"].tolist() == [4.0, 4.0]
