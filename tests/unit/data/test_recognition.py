"""Formats that are recognised: files in the shape of known data sets, read without an option."""

import json
import logging
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import PreTrainedTokenizerFast

from lit_rlhf import data
from lit_rlhf.data import (
    Auto,
    BranchedDataModule,
    ChosenOf,
    DemonstrationDataModule,
    ExplicitPrompt,
    FileSource,
    Format,
    ImplicitPrompt,
    InvalidRowError,
    PreferenceDataModule,
    PromptDataModule,
    Record,
    RowsSource,
    UnpairedDataModule,
)
from lit_rlhf.data.recognition import FORMATS, read_as, spell
from lit_rlhf.errors import ConfigurationError, DataError
from tests.unit.data.contract import ready
from tests.unit.data.shape_cases import BLUE, CASES, COLOR, READS_TOOLS

SHAPES = Path(__file__).parent / "shapes"


def source(name: str) -> FileSource:
    return FileSource(str(SHAPES / f"{name}.jsonl"))


def opened(
    kind: str, name: str, tokenizer: PreTrainedTokenizerFast, **options: Any
) -> BranchedDataModule:
    if name == "messages_tools":
        tokenizer.chat_template = READS_TOOLS + tokenizer.chat_template
    module = getattr(data, f"{kind}DataModule")(
        source(name), tokenizer=tokenizer, batch_size=1, **options
    )
    module.prepare_data()
    module.setup("fit")
    assert isinstance(module, BranchedDataModule)
    return module


def decoded(module: BranchedDataModule) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """The first record as a batch holds it: the text of its prompt, of its answers by the mask, and its fields."""
    rows = module.rows["train"]
    batch: dict[str, Any] = dict(module.collator()([rows[0]]))
    ids, branches = batch["input_ids"][0], batch["branch_ids"][0]
    decode = module.tokenizer.decode
    count = len(rows[0]["completion_ids"])
    if "step_label" in rows[0]["fields"]:  # steps share one branch
        answers = tuple(str(decode(step)) for step in rows[0]["completion_ids"])
        assert str(decode(ids[branches == 1])) == "".join(answers)
    else:
        answers = tuple(str(decode(ids[branches == k + 1])) for k in range(count))
        assert set(branches.tolist()) == set(range(count + 1))
    return str(decode(ids[branches == 0])), answers, rows[0]["fields"]


def test_every_shape_is_tried() -> None:
    assert {path.stem for path in SHAPES.glob("*.jsonl")} == set(CASES)
    missing = {kind.__name__ for kind in FORMATS} - {
        word
        for case in CASES.values()
        for word in case[1].replace("(", " ").replace(")", " ").split()
    }
    assert missing == {"Ranked"}  # this library's own, tried below


@pytest.mark.parametrize("name", CASES)
def test_a_known_shape_needs_no_option(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    kind, spelled, prompt, answers, fields, count = CASES[name]
    module = opened(kind, name, tokenizer)
    assert spell(module.format_of("train")) == spelled
    assert decoded(module) == (prompt, answers, fields)
    assert len(module.rows["train"]) == count


@pytest.mark.parametrize("name", CASES)
def test_prompts_of_all_shapes_can_be_rolled_out(
    name: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    if CASES[name][1] == "PlainText()":
        with pytest.raises(ConfigurationError, match="needs prompts"):
            opened("Prompt", name, tokenizer)
    else:
        # As whoever has learned of the rows has seen them: a reward model, say.
        assert decoded(opened("Prompt", name, tokenizer))[:2] == (CASES[name][2], ())


@pytest.mark.parametrize("name", ["ultrafeedback_raw", "nectar", "oasst_trees"])
def test_ratings_and_rankings_become_pairs(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    module = opened("Preference", name, tokenizer)
    assert spell(module.format_of("train")).startswith("PairsFromRanking(")
    prompt, (chosen, _), fields = decoded(module)
    assert (prompt, chosen, fields) == (COLOR, BLUE, {})
    assert (
        len(module.rows["train"]) == {"ultrafeedback_raw": 4, "nectar": 4, "oasst_trees": 2}[name]
    )


def test_transcripts_stay_text_without_a_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    assert decoded(opened("Preference", "hh", tokenizer))[:2] == (
        "\n\nHuman: What is rain?\n\nAssistant: Water from clouds.\n\nHuman: And snow?\n\nAssistant:",
        (" Frozen rain.<eos>", " No idea.<eos>"),
    )
    assert decoded(opened("Demonstration", "alpaca", tokenizer))[:2] == (
        "\n\nHuman: Translate to French.\ncat\n\nAssistant:",
        (" chat<eos>",),
    )


def test_messages_become_a_transcript_on_request(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ConfigurationError, match=r"no chat template .*AsTranscript"):
        opened("Preference", "skywork", tokenizer)
    found = decoded(
        opened("Preference", "skywork", tokenizer, format=data.AsTranscript(ImplicitPrompt()))
    )
    assert found[:2] == ("\n\nHuman: Name a color.\n\nAssistant:", (" Blue.<eos>", " A dog.<eos>"))


def test_a_conversation_survives_text_and_back() -> None:
    row = json.loads((SHAPES / "hh.jsonl").read_text().splitlines()[0])
    text = ImplicitPrompt()(row)[0]
    chat = data.AsChat(ImplicitPrompt())(row)[0]
    rows = {
        "chosen": [*chat.prompt, *chat.completions[0]],
        "rejected": [*chat.prompt, *chat.completions[1]],
    }
    assert data.AsTranscript(ImplicitPrompt())(rows)[0] == text


def test_scores_of_a_pair_are_its_margin_on_request(tokenizer: PreTrainedTokenizerFast) -> None:
    scored = ImplicitPrompt(chosen_score="score_chosen", rejected_score="score_rejected")
    module = opened("Preference", "ultrafeedback_binarized", tokenizer, format=scored)
    assert decoded(module)[2] == {"margin": 4.5}
    with pytest.raises(ConfigurationError, match="rejected_score"):
        ImplicitPrompt(chosen_score="score_chosen")


def test_lists_with_ranks_or_scores(tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"prompt": "The sky is", "completions": [" red", " blue"]}
    for extra, scores in (({"scores": [1, 2]}, (1.0, 2.0)), ({"ranks": [2, 1]}, (-2.0, -1.0))):
        rows = RowsSource([{**row, **extra}])
        module = data.RankedDataModule(rows, tokenizer=tokenizer, batch_size=1)
        assert module.records({**row, **extra})[0].fields["score"] == scores


class TestSaying:
    def test_format_row_and_unread_columns_are_said_once(
        self, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO):
            opened("Preference", "ultrafeedback_binarized", tokenizer)
        (said,) = [r.message for r in caplog.records if "is read as" in r.message]
        assert "ultrafeedback_binarized.jsonl is read as ImplicitPrompt()" in said
        assert "prompt: <|user|>Name a color.<|assistant|>\n  chosen: Blue.<eos>\n" in said
        assert "not read: prompt, prompt_id, messages, score_chosen, score_rejected" in said
        assert "chosen_score: score_chosen" in said

    def test_validation_rows_of_another_shape_are_said(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        module = PreferenceDataModule(
            source("trl_preference"), source("skywork"), tokenizer=tokenizer, batch_size=1
        )
        with pytest.warns(
            UserWarning, match=r"val rows are read as ImplicitPrompt\(\), .* Explicit"
        ):
            module.prepare_data()


class TestRefusing:
    def test_demonstrations_of_pairs_need_an_option(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"are pairs.*ChosenOf\(ImplicitPrompt\(\)\)"):
            opened("Demonstration", "skywork", tokenizer)
        module = opened("Demonstration", "skywork", tokenizer, format=ChosenOf(ImplicitPrompt()))
        assert decoded(module)[:2] == (COLOR, (BLUE,))

    def test_bad_answers_are_not_imitated_in_silence(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"are unpaired.*Demonstration\(\).*label"):
            opened("Demonstration", "kto_bool", tokenizer)

    def test_several_readings_are_named(self, tokenizer: PreTrainedTokenizerFast) -> None:
        row = {"prompt": "a", "completion": "b", "instruction": "c", "output": "d"}
        with pytest.raises(
            ConfigurationError,
            match=r"several ways: AsChat\(Alpaca\(\)\) .*; Demonstration\(\) .*`format`.*instruction",
        ):
            DemonstrationDataModule(RowsSource([row]), tokenizer=tokenizer).prepare_data()

    def test_labels_that_say_nothing_are_counted_not_passed_over(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        rows = [{"prompt": "p", "completion": f"a{i}", "label": "yes"} for i in range(4)]
        with pytest.raises(DataError, match=r"4 left out, column 'label'.*got 'yes'"):
            ready(UnpairedDataModule(RowsSource(rows), tokenizer=tokenizer, batch_size=2))

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"ask": "a", "chosen": "b", "rejected": "c"}, "missing: prompt"),
            (
                {"question": "a", "chosen": "b", "rejected": "c"},
                r"add --data.format ExplicitPrompt --data.format.prompt question \(",
            ),
            (
                {"x": 1},
                r"columns: x. Nearest: ExplicitPrompt\(\) [^;]*;? ?[^;]*format.prompt COLUMN",
            ),
            ({"prompt": "a", "b": "b", "c": "c"}, "missing: chosen, rejected"),
        ],
    )
    def test_what_nothing_reads_is_shown_with_the_nearest(
        self, row: dict[str, Any], words: str, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        with pytest.raises(ConfigurationError, match=words):
            PreferenceDataModule(RowsSource([row]), tokenizer=tokenizer).prepare_data()


class Votes(Format):
    """A format of one's own, as a user writes it."""

    def __call__(self, row: Any) -> list[Record]:
        if not row["votes"]:
            raise InvalidRowError("no votes", "the list is empty")
        first, second = sorted(row["votes"], key=row["votes"].get, reverse=True)[:2]
        return [Record(row["ask"], (first, second))]


class TestOwnFormats:
    rows = RowsSource(
        [{"ask": "a", "votes": {"b": 1, "c": 2}, "prompt": "x", "chosen": "y", "rejected": "z"}]
    )

    def test_takes_part_and_goes_first(self, tokenizer: PreTrainedTokenizerFast) -> None:
        own = PreferenceDataModule(self.rows, tokenizer=tokenizer, format=Auto([Votes()]))
        assert own.records(self.rows.rows[0])[0].completions == ("c", "b")
        assert spell(own.format_of("train")) == "Votes()"

    def test_the_choice_is_part_of_the_key(self, tokenizer: PreTrainedTokenizerFast) -> None:
        found = PreferenceDataModule(self.rows, tokenizer=tokenizer)
        named = PreferenceDataModule(self.rows, tokenizer=tokenizer, format=data.ExplicitPrompt())
        own = PreferenceDataModule(self.rows, tokenizer=tokenizer, format=Auto([Votes()]))
        assert found.dataset_hash == named.dataset_hash != own.dataset_hash

    @pytest.mark.parametrize("given", [None, Auto()], ids=["no format", "Auto"])
    def test_records_of_a_subclass_are_read_as_it_says(
        self, tokenizer: PreTrainedTokenizerFast, given: Auto | None
    ) -> None:
        class Renamed(PreferenceDataModule):
            def records(self, row: Any) -> list[Record]:
                return super().records({**row, "prompt": row["ask"]})

        module = ready(Renamed(self.rows, tokenizer=tokenizer, format=given, batch_size=1))
        assert module.records(self.rows.rows[0])[0].prompt == "a"
        assert tokenizer.decode(module.rows["train"][0]["prompt_ids"]) == "a"

    def test_a_subclass_states_its_format(self, tokenizer: PreTrainedTokenizerFast) -> None:
        class Voted(PreferenceDataModule):
            default_format = Votes()

        assert Voted(self.rows, tokenizer=tokenizer).records(self.rows.rows[0])[0].prompt == "a"


def test_labels_of_pairs_for_kto(tokenizer: PreTrainedTokenizerFast) -> None:
    module = UnpairedDataModule(source("skywork"), tokenizer=tokenizer, batch_size=1)
    assert spell(module.format_of("train")) == "UnpairedFromPairs(ImplicitPrompt())"


def test_prompts_keep_their_columns(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = RowsSource([{"prompt": "2 + 2?", "completion": "4", "answer": "4"}])
    module = PromptDataModule(rows, tokenizer=tokenizer, batch_size=1)
    assert module.records(rows.rows[0])[0].columns == {"completion": "4", "answer": "4"}


class TestPromptsBesideConversations:
    """A column `prompt` in bare text, in a file whose other columns are a conversation."""

    chat = ({"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."})
    pair = {"chosen": chat, "rejected": (chat[0], {"role": "assistant", "content": "No."})}

    @staticmethod
    def read(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> tuple[str, Any, Any]:
        module = PromptDataModule(RowsSource([row]), tokenizer=tokenizer, batch_size=1)
        record = module.records(row)[0]
        return spell(module.format_of("train")), record.prompt, record.columns

    def test_is_their_question(self, tokenizer: PreTrainedTokenizerFast) -> None:
        row = {"prompt": "Hi.", **self.pair, "topic": "greeting"}
        spelled, prompt, columns = self.read(row, tokenizer)
        assert (spelled, prompt) == ("AsChat(PromptOnly())", [self.chat[0]])
        assert columns["topic"] == "greeting"

    def test_is_less_than_what_came_before(self, tokenizer: PreTrainedTokenizerFast) -> None:
        system = {"role": "system", "content": "Be brief."}
        pair = {name: (system, *turns) for name, turns in self.pair.items()}
        row = {"prompt": "Hi.", **pair, "topic": "greeting"}
        spelled, prompt, columns = self.read(row, tokenizer)
        assert (spelled, prompt) == ("PromptsOf(ImplicitPrompt())", [system, self.chat[0]])
        assert columns == row  # all of them, as PromptOnly carries them

    def test_stays_text_where_the_answers_are(self, tokenizer: PreTrainedTokenizerFast) -> None:
        row = {"prompt": "Hi.", "chosen": " Hello.", "rejected": " No."}
        assert self.read(row, tokenizer)[:2] == ("PromptOnly()", "Hi.")

    def test_of_an_own_format_stays_as_it_is(self, tokenizer: PreTrainedTokenizerFast) -> None:
        class Asked(data.PromptOnly):
            pass

        row = {"prompt": "Hi.", **self.pair}
        options: dict[str, Any] = {"tokenizer": tokenizer, "batch_size": 1}
        module = PromptDataModule(RowsSource([row]), format=Auto([Asked()]), **options)
        assert module.records(row)[0].prompt == "Hi."


def test_columns_of_prompts_of_other_data_are_chosen() -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "topic": "d"}
    assert data.PromptsOf(data.ExplicitPrompt(), columns=["topic"])(row)[0].columns == {
        "topic": "d"
    }
    with pytest.raises(ConfigurationError, match="list of names"):
        data.PromptsOf(data.ExplicitPrompt(), columns="topic")  # type: ignore[arg-type]


class TestMessagesBesidePairs:
    PAIR: ClassVar[dict[str, Any]] = {"chosen": "A cat.", "rejected": "No."}
    ASKED: ClassVar[list[dict[str, str]]] = [{"role": "user", "content": "Which?"}]

    def read(self, **columns: Any) -> Format:
        return read_as([self.PAIR | columns], "the rows", "pairs", None).format

    def test_are_the_prompt_where_they_end_with_a_question(self) -> None:
        assert self.read(messages=self.ASKED) == ExplicitPrompt(prompt="messages")
        assert self.read(messages=self.ASKED, prompt=None) == ExplicitPrompt(prompt="messages")

    def test_give_way_to_a_prompt_that_says_the_same(self) -> None:
        assert self.read(prompt="Which?", messages=self.ASKED) == ExplicitPrompt()

    def test_that_hold_earlier_turns_need_an_option(self) -> None:
        longer = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
        with pytest.raises(ConfigurationError, match="several ways"):
            self.read(prompt="Which?", messages=longer + self.ASKED)

    def test_that_are_answered_already_are_no_prompt(self) -> None:
        answered = [*self.ASKED, {"role": "assistant", "content": "A cat."}]
        with pytest.raises(ConfigurationError, match="are no pairs"):
            self.read(messages=answered)
