"""Generated arithmetic: right answers, the same rows each time, and a reward that agrees."""

import re

import pytest
import torch

from lit_rlhf.data import ArithmeticSource, DemonstrationDataModule, PromptDataModule
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.rewards import ExactAnswerReward
from lit_rlhf.testing import make_tokenizer
from tests.reference.completions import make_completions


def test_answers_are_right_and_steps_lead_to_them() -> None:
    rows = list(ArithmeticSource(rows=200, terms=4, largest=30).load())
    answers = set()
    for row in rows:
        question = re.fullmatch(
            r"What is ([-+ 0-9]+)\? End with #### and the answer\.\n", row["prompt"]
        )
        assert question is not None
        numbers = [int(word) for word in re.findall(r"\d+", question[1])]
        assert len(numbers) == 4
        assert all(0 <= number <= 30 for number in numbers)
        total = eval(question[1])
        *steps, last = row["completion"].split("\n")
        assert len(steps) == 3
        for step in steps:
            left, right = step.split(" = ")
            assert eval(left) == int(right)
        assert last == f"#### {total}"
        assert row["answer"] == str(total)
        answers.add(total)
    assert len(answers) > 30
    assert min(answers) < 0


def test_rows_depend_on_seed_and_number_alone() -> None:
    few, many = list(ArithmeticSource(rows=5).load()), list(ArithmeticSource(rows=50).load())
    assert many[:5] == few
    assert list(ArithmeticSource(rows=5, seed=1).load()) != few
    assert ArithmeticSource(rows=5).fingerprint() == ArithmeticSource(rows=5).fingerprint()
    assert ArithmeticSource(rows=5).fingerprint() != ArithmeticSource(rows=5, seed=1).fingerprint()


def test_the_exact_answer_reward_agrees_with_the_worked_steps() -> None:
    rows = list(ArithmeticSource(rows=40, terms=3).load())
    responses, answers = [row["completion"] for row in rows], [row["answer"] for row in rows]
    completions = make_completions(make_tokenizer(), ["x"], responses, answer=answers)
    assert torch.equal(ExactAnswerReward().score(completions).total, torch.ones(40))
    turned = make_completions(
        make_tokenizer(), ["x"], responses, answer=[str(int(a) + 1) for a in answers]
    )
    assert torch.equal(ExactAnswerReward().score(turned).total, torch.zeros(40))


def test_it_feeds_imitation_and_rollouts() -> None:
    source = ArithmeticSource(rows=12)
    for module in (DemonstrationDataModule, PromptDataModule):
        data = module(source, tokenizer=make_tokenizer(), batch_size=4, invalid="error")
        data.prepare_data()
        data.setup("fit")
        batches = list(data.train_dataloader())
        assert len(batches) == 3
    assert set(batches[0]["columns"]) == {"answer", "completion"}


@pytest.mark.parametrize("options", [{"rows": 0}, {"terms": 1}, {"largest": 0}])
def test_bad_sizes_are_refused(options: dict[str, int]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"{name}={options[name]}.: {name} must be"):
        ArithmeticSource(**options)
