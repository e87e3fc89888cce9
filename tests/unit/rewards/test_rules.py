from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.rewards import ExactAnswerReward, LengthReward, LexiconReward, PatternReward, Reward
from lit_rlhf.testing import make_tokenizer
from tests.reference.completions import make_completions
from tests.tolerances import FP32

TOKENIZER = make_tokenizer()


def scores(reward: Reward, responses: list[str], **columns: list[object]) -> Tensor:
    found = reward.score(make_completions(TOKENIZER, ["x"], responses, **columns)).total
    assert found.dtype == torch.float32
    assert found.shape == (len(responses),)
    return found


def check(found: Tensor, wanted: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float32), **FP32)


def test_length_counts_what_it_is_told_to_count() -> None:
    responses = ["abc def", "it's a well-known fact"]
    check(scores(LengthReward(unit="characters"), responses), [7, 22])
    check(scores(LengthReward(unit="words"), responses), [2, 4])
    tokens = [len(TOKENIZER(text)["input_ids"]) + 1 for text in responses]  # and EOS
    check(scores(LengthReward(), responses), [float(count) for count in tokens])


def test_length_near_a_target_is_worth_most_and_the_scale_is_in_units_of_length() -> None:
    check(
        scores(LengthReward(target=3, scale=2, unit="characters"), ["a", "abc", "abcdef"]),
        [-1.0, 0.0, -1.5],
    )
    check(scores(LengthReward(scale=-10, unit="characters"), ["abcde"]), [-0.5])


def test_a_pattern_is_searched_or_must_match_the_whole() -> None:
    check(scores(PatternReward("(?i)yes"), ["Yes, of course", "no"]), [1, 0])
    check(scores(PatternReward("yes", found=2, missing=-1, whole=True), ["yes", "yes!"]), [2, -1])


def test_a_lexicon_adds_up_weights_without_case_and_in_whole_words() -> None:
    reward = LexiconReward({"Good": 1.0, "bad": -2.0})
    check(scores(reward, ["good GOOD goodness", "Bad, but good.", ""]), [2.0, -1.0, 0.0])
    check(
        scores(LexiconReward({"good": 1.0}, mean=True), ["a good film", "good", ""]),
        [1 / 3, 1.0, 0.0],
    )


def test_a_byte_order_mark_is_no_part_of_a_word(tmp_path: Path) -> None:
    file = tmp_path / "words.tsv"
    file.write_text("good\t2", encoding="utf-8-sig")
    check(scores(LexiconReward(file=str(file)), ["good"]), [2.0])


def test_a_lexicon_is_read_from_a_file_and_words_given_beside_it_win(tmp_path: Path) -> None:
    file = tmp_path / "words.tsv"
    file.write_text("good\t1.5\n\nbad\t-1\n", encoding="utf-8")
    check(scores(LexiconReward({"bad": -3.0}, file=str(file)), ["good bad"]), [-1.5])


@pytest.mark.parametrize(
    ("response", "wanted"),
    [
        ("18 - 3 = 15.\n#### 15", 1.0),
        ("18 - 3 = 15.\n####15 apples\nDone in 2 steps.", 1.0),
        ("#### 15 or 16", 0.0),
        ("#### 15/1", 0.0),
        (r"so it is $\boxed{15}$, not 3", 1.0),
        (r"\boxed{ 15.00 } and then \boxed{16}", 0.0),
        (r"\boxed{}, that is 15", 1.0),
        ("#### \u221215", 0.0),
        ("#### -15", 0.0),
        ("half of 30-15", 1.0),
        ("#### 15.0", 1.0),
        ("#### $15", 1.0),
        ("I first thought #### 12, no:\n#### 15", 1.0),
        ("so the answer is 15", 1.0),
        ("15 of them, less 1, are 14", 0.0),
        ("#### fifteen", 0.0),
        ("no idea", -1.0),
    ],
)
def test_the_final_answer_is_compared_with_the_column(response: str, wanted: float) -> None:
    reward = ExactAnswerReward(unanswered=-1.0)
    check(scores(reward, [response], answer=["They eat 3, so 18 - 3 = 15.\n#### 15"]), [wanted])


def test_answers_may_be_words_large_numbers_or_numbers_in_the_column() -> None:
    reward = ExactAnswerReward(column="solution")
    found = scores(
        reward, ["#### Paris.", "#### 1,000", "7"], solution=["#### paris", 1000, "#### 7"]
    )
    check(found, [1, 1, 1])


def test_without_last_number_the_format_is_a_must() -> None:
    reward = ExactAnswerReward(last_number=False, unanswered=-0.5)
    check(scores(reward, ["the answer is 15", "#### 15"], answer=["15", "15"]), [-0.5, 1])


def test_a_missing_column_is_named_with_those_that_exist() -> None:
    with pytest.raises(
        DataError, match=r"reads the column 'answer', .* columns \['question'\].*format.columns"
    ):
        scores(ExactAnswerReward(), ["1"], question=["?"])


def test_an_entry_without_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match="'answer' holds ' '"):
        scores(ExactAnswerReward(), ["1"], answer=[" "])


def test_options_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="scale=0"):
        LengthReward(scale=0)
    with pytest.raises(ConfigurationError, match=r"pattern='\(' is no regular expression"):
        PatternReward("(")
    with pytest.raises(ConfigurationError, match="has 0 groups"):
        ExactAnswerReward(pattern="####")
    with pytest.raises(ConfigurationError, match="has no words"):
        LexiconReward()
    with pytest.raises(ConfigurationError, match="'not good' is no single word"):
        LexiconReward({"not good": -1.0})
    with pytest.raises(ConfigurationError, match="no file"):
        LexiconReward(file=str(tmp_path / "missing.tsv"))
    torn = tmp_path / "torn.tsv"
    torn.write_text("good\t1\nbad -1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"torn.tsv, line 2: 'bad -1'"):
        LexiconReward(file=str(torn))


@pytest.mark.parametrize(
    ("response", "answer", "wanted"),
    [
        ("#### -7", "-7", 1.0),
        ("#### \u22127", "#### -7", 1.0),
        ("the sum is -7", "-7", 1.0),
        ("10-7", "7", 1.0),
        ("#### 0", "0.00", 1.0),
        ("#### 0 left", "0", 1.0),
        ("#### 0.30000000000000001", "0.3", 0.0),
        ("#### 1e3", "1000", 1.0),
        ("#### 12,345.5", "$12345.50", 1.0),
        ("#### 45%", "45", 1.0),
        ("#### 1/2", "1/2", 1.0),
        ("#### 1/2", "0.5", 0.0),
        ("#### nan", "nan", 1.0),
        ("#### infinity", "5", 0.0),
    ],
)
def test_numbers_are_compared_exactly_however_they_are_written(
    response: str, answer: str, wanted: float
) -> None:
    check(scores(ExactAnswerReward(), [response], answer=[answer]), [wanted])
