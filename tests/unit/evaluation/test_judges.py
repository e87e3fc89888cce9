"""Judges as scorers: differences of scores are logits of verdicts, and the favor for a place is told apart."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from lit_rlhf.data import RowsSource
from lit_rlhf.evaluation import JudgeScorer, Scored, evaluate_reward, read_comparisons
from lit_rlhf.judges import Judge
from lit_rlhf.judges.base import Answer, Conversation
from lit_rlhf.testing import tiny_preferences, tiny_rankings
from lit_rlhf.testing.preferences import KIND


class ByWords(Judge):
    """Reads its own question: goes by kind words with probability 0.8, and 0.1 more for what is shown first."""

    def identity(self) -> dict[str, Any]:
        return {}

    def ask(self, conversations: Mapping[str, Conversation]) -> Mapping[str, Answer | None]:
        return {key: self._answer(turns[-1]["content"]) for key, turns in conversations.items()}

    def _answer(self, question: str) -> Answer | None:
        if "silent" in question:
            return None
        if not self.pairwise:
            return {"5": 1.0} if any(word in question for word in KIND) else {"1": 1.0}
        first, second = (any(w in part for w in KIND) for part in question.split("|")[1:])
        p = 0.5 + 0.3 * (first - second) + 0.1
        return {"A": p, "B": 1 - p}


def test_a_pairwise_judge() -> None:
    rows = tiny_preferences(12)
    rows[2] = {**rows[2], "prompt": "silent"}
    data = read_comparisons(RowsSource([dict(row) for row in rows]))
    judge = ByWords("{{ prompt }}|{{ first }}|{{ second }}", failures="null")
    found = evaluate_reward(JudgeScorer(judge), data)
    assert found.accuracy.value == 1.0
    assert found.left_out == {"the judge gave no verdict": 1}
    wanted = float(torch.logit(torch.tensor(0.8)))
    assert found.margin.value == pytest.approx(wanted, abs=1e-5)
    assert found.position is not None
    assert found.position.value == pytest.approx(0.1, abs=1e-6)
    assert found.calibration is not None
    turned = {each.change: each.turned.value for each in found.turned}
    assert turned["answers in the other order"] == 0.0
    lists = read_comparisons(RowsSource(tiny_rankings(4, completions=3)))
    scores = JudgeScorer(judge).score(lists.items)[0]
    assert isinstance(scores, Scored)
    assert float(scores.total.sum()) == pytest.approx(0.0, abs=1e-6)
    assert float(scores.total[0] - scores.total[1]) == pytest.approx(
        wanted, abs=1e-5
    )  # kind less unkind


def test_a_judge_of_single_answers_claims_no_probabilities() -> None:
    data = read_comparisons(RowsSource([dict(row) for row in tiny_preferences(6)]))
    found = evaluate_reward(JudgeScorer(ByWords("{{ prompt }}: {{ response }}")), data, perturbed=0)
    assert found.accuracy.value == 1.0
    assert found.margin.value == 4.0
    assert found.calibration is None
    assert found.position is None
