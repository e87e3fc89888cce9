"""RewardBench's weights against sums by hand, RewardBench 2's ties against a slow reference."""

import pytest
import torch

from lit_rlhf.evaluation.rewardbench import SECTIONS, section_scores, ties_score
from tests.reference import metrics as reference


def test_sections_weigh_by_rows_and_maths_as_much_as_all_code() -> None:
    assert [len(subsets) for subsets in SECTIONS.values()] == [5, 6, 5, 7]
    code = sum(n for name, n in SECTIONS["Reasoning"].items() if name.startswith("hep-"))
    assert SECTIONS["Reasoning"]["math-prm"] == code == 984
    rows = {section: sum(subsets.values()) for section, subsets in SECTIONS.items()}
    assert rows == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    accuracies = {name: 0.5 for subsets in SECTIONS.values() for name in subsets}
    found = section_scores(accuracies | {"donotanswer": 1.0, "my own": 0.0})
    assert found["Safety"] == pytest.approx(0.5 + 0.5 * 136 / 740)
    assert found["mean of sections"] == pytest.approx((1.5 + found["Safety"]) / 4)


def test_second_versions_subsets_weigh_alike() -> None:
    found = section_scores({"Math": 0.9, "Ties": 0.5, "other": 0.0})
    assert found == {"Math": 0.9, "Ties": 0.5, "mean of sections": 0.7}
    assert section_scores({"other": 1.0}) == {}


@pytest.mark.parametrize("shift", [0.0, 2.0, 6.0])
def test_ties_equal_the_reference(shift: float) -> None:
    rows = []
    for question in range(12):
        for way, right in (("ref", 1), ("tied", 4)):
            good = torch.arange(right + 3) < right
            if (question, way) != (3, "ref"):  # a question that is there in one way alone
                rows.append((f"{way}:{question}", torch.randn(right + 3) + shift * good, good))
    wanted = reference.ties_score([(n, s.tolist(), g.tolist()) for n, s, g in rows])
    assert ties_score(rows) == pytest.approx(wanted, abs=1e-6)
    assert ties_score([row for row in rows if row[0].startswith("ref")]) is None
