from typing import Any

import pytest
import torch

from lit_rlhf.data.collate import (
    BranchedCollator,
    DemonstrationRowsCollator,
    PairRowsCollator,
    PreferenceCollator,
    RankedCollator,
)
from lit_rlhf.data.rows import TokenizedRow
from lit_rlhf.errors import DataError
from lit_rlhf.functional.branches import branch_layout


def row(index: int, prompt: list[int], *completions: list[int], **fields: object) -> TokenizedRow:
    return {
        "index": index,
        "row": index,
        "prompt_ids": prompt,
        "completion_ids": list(completions),
        "fields": fields,
        "columns": {},
    }


ROWS = [row(4, [1, 2, 3], [4], [5, 6]), row(2, [1], [2, 3, 4], [5])]


def test_a_batch_by_hand() -> None:
    batch = PreferenceCollator(pad_id=9)(ROWS)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 9]]
    assert batch["branch_ids"].tolist() == [[0, 0, 0, 1, 2, 2], [0, 1, 1, 1, 2, -1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 3, 4], [0, 1, 2, 3, 1, 0]]
    assert batch["index"].tolist() == [4, 2]


@pytest.mark.parametrize("step", [1, 4, 64])
def test_the_layout_is_the_one_that_models_read(step: int) -> None:
    batch = PreferenceCollator(pad_id=0, pad_to_multiple_of=step)(ROWS)
    assert batch["input_ids"].shape[1] % step == 0
    layout = branch_layout(batch["branch_ids"], 2)
    for line, given in enumerate(ROWS):
        for branch, ids in enumerate(given["completion_ids"]):
            found = batch["input_ids"][line, layout.index[line, branch]][layout.mask[line, branch]]
            assert found.tolist() == ids


def test_the_value_of_padding_changes_nothing_else() -> None:
    left, right = (
        BranchedCollator(pad_id=pad, pad_to_multiple_of=8).layout(ROWS) for pad in (0, 7)
    )
    real = left["branch_ids"] >= 0
    assert torch.equal(left["input_ids"][real], right["input_ids"][real])
    assert torch.equal(left["branch_ids"], right["branch_ids"])
    assert set(right["input_ids"][~real].tolist()) == {7}


def test_rankings_of_different_lengths() -> None:
    rows = [
        row(0, [1], [2], [3], score=[0.5, 1.0]),
        row(1, [1], [2], [3], [4], score=[3.0, 2.0, 1.0]),
    ]
    batch = RankedCollator(pad_id=0)(rows)
    assert batch["score"].tolist() == [[0.5, 1.0, 0.0], [3.0, 2.0, 1.0]]
    assert batch["branch_mask"].tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize("kind", [PreferenceCollator, PairRowsCollator, DemonstrationRowsCollator])
def test_rows_that_another_trainer_has_emptied_are_told_the_option(kind: Any) -> None:
    with pytest.raises(DataError, match=r"\['index'\].*remove_unused_columns=False"):
        kind(pad_id=0)([{"index": 4}])
