"""The branched layout against rows built from lists, and its round trips."""

import pytest
import torch
from torch import Tensor

from lit_rlhf.functional.branches import (
    branch_attention_mask,
    branch_layout,
    branch_parts,
    expand_branches,
    pack_branches,
)
from tests.reference import branches as reference

Row = tuple[list[int], list[list[int]]]
ROWS: dict[str, list[Row]] = {
    "pairs": [([5, 6, 7], [[1, 2], [3]]), ([8], [[4], [1, 2, 3, 4]])],
    "single": [([5], [[1]]), ([6, 7], [[2, 3]])],
    "ragged": [([5, 6], [[1], [], [2, 3]]), ([7], [[1, 2, 3, 4, 5, 6, 7], [2], [3]])],
    "prompts": [([5, 6], []), ([7], [])],
}


def _batch(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    width = max(len(prompt) + sum(map(len, branches)) for prompt, branches in rows) + 2
    columns = zip(
        *(reference.row(prompt, branches, width) for prompt, branches in rows), strict=True
    )
    ids, owners, positions = (torch.tensor(column) for column in columns)
    return ids, owners, positions


@pytest.mark.parametrize("name", ["pairs", "single", "ragged"])
def test_layout_finds_the_tokens_and_what_predicts_them(name: str) -> None:
    rows = ROWS[name]
    ids, owners, _ = _batch(rows)
    num_branches = len(rows[0][1])
    layout = branch_layout(owners, num_branches)
    longest = max(len(branch) for _, branches in rows for branch in branches)
    assert layout.mask.shape == (len(rows), num_branches, longest)
    for b, (_, branches) in enumerate(rows):
        for k, branch in enumerate(branches):
            mask = layout.mask[b, k]
            assert ids[b, layout.index[b, k]][mask].tolist() == branch
            assert mask.tolist() == [True] * len(branch) + [False] * (longest - len(branch))
            expected = [
                reference.predictor(owners[b].tolist(), int(i)) for i in layout.index[b, k][mask]
            ]
            assert layout.source[b, k][mask].tolist() == expected
            assert int(layout.last[b, k]) == (int(layout.index[b, k][mask][-1]) if branch else 0)
            assert not layout.index[b, k][~mask].any()
            assert not layout.source[b, k][~mask].any()


def test_layout_of_branches_that_a_row_lacks_is_empty() -> None:
    _, owners, _ = _batch(ROWS["prompts"])
    layout = branch_layout(owners, 2)
    assert layout.mask.shape == (2, 2, 1)
    assert not layout.mask.any()
    assert branch_layout(owners, 0).mask.shape == (2, 0, 1)


@pytest.mark.parametrize("name", ROWS)
def test_attention_is_causal_within_prompt_and_branch(name: str) -> None:
    _, owners, _ = _batch(ROWS[name])
    got = branch_attention_mask(owners)
    for b, row in enumerate(owners.tolist()):
        expected = [
            [reference.attends(row, i, j) for j in range(len(row))] for i in range(len(row))
        ]
        assert got[b, 0].tolist() == expected
    assert got.any(-1).all()


@pytest.mark.parametrize("name", ["pairs", "single", "ragged"])
def test_expanded_rows_are_the_prompt_and_one_branch(name: str) -> None:
    rows = ROWS[name]
    ids, owners, _ = _batch(rows)
    num_branches = len(rows[0][1])
    got = expand_branches(ids, owners, branch_layout(owners, num_branches), pad_token_id=99)
    sequences = [(prompt, branch) for prompt, branches in rows for branch in branches]
    longest = max(len(prompt) + len(branch) for prompt, branch in sequences)
    assert got.input_ids.shape == (len(sequences), longest)
    for n, (prompt, branch) in enumerate(sequences):
        ends = longest - len(prompt) - len(branch)
        assert got.input_ids[n].tolist() == prompt + branch + [99] * ends
        assert got.mask[n].tolist() == [True] * (longest - ends) + [False] * ends
        assert got.branch_ids[n].tolist() == [0] * len(prompt) + [1] * len(branch) + [-1] * ends
        assert got.position_ids[n].tolist() == list(range(longest))


@pytest.mark.parametrize("name", ["pairs", "single", "ragged"])
def test_packing_rows_of_prompts_and_completions_gives_the_branched_row(name: str) -> None:
    rows = ROWS[name]
    prompts = [prompt for prompt, _ in rows]
    completions = [branch for _, branches in rows for branch in branches]

    def padded(lists: list[list[int]], extra: int) -> tuple[Tensor, Tensor]:
        width = max(map(len, lists)) + extra
        ids = torch.tensor([[*tokens, *[42] * (width - len(tokens))] for tokens in lists])
        return ids, torch.tensor([[t < len(tokens) for t in range(width)] for tokens in lists])

    got = pack_branches(*padded(prompts, 2), *padded(completions, 1), pad_token_id=0)
    width = max(len(prompt) + sum(map(len, branches)) for prompt, branches in rows)
    for b, (prompt, branches) in enumerate(rows):
        ids, owners, positions = reference.row(prompt, branches, width)
        assert got.input_ids[b].tolist() == ids
        assert got.branch_ids[b].tolist() == owners
        assert got.position_ids[b].tolist() == positions


@pytest.mark.parametrize("name", ["pairs", "single", "ragged"])
def test_expanding_what_was_packed_gives_the_rows_back(name: str) -> None:
    rows = ROWS[name]
    ids, owners, positions = _batch(rows)
    num_branches = len(rows[0][1])
    layout = branch_layout(owners, num_branches)
    prompt_mask = owners == 0
    tokens = ids[:, None].expand(-1, num_branches, -1).gather(-1, layout.index).flatten(0, 1)
    packed = pack_branches(ids, prompt_mask, tokens, layout.mask.flatten(0, 1))
    width = packed.input_ids.shape[1]
    assert torch.equal(packed.branch_ids, owners[:, :width])
    assert torch.equal(packed.input_ids, ids[:, :width])
    assert torch.equal(packed.position_ids, positions[:, :width])


@pytest.mark.parametrize("name", ["pairs", "single", "ragged"])
def test_apart_each_token_sees_what_it_sees_in_the_row(name: str) -> None:
    _, owners, _ = _batch(ROWS[name])
    length = owners.shape[1]
    layout = branch_layout(owners, len(ROWS[name][0][1]))
    parts = branch_parts(owners, layout)
    rows, branches, time = layout.index.shape
    for b in range(rows):
        for i in range(length):
            place = int(parts.place[b * length + i]) - rows * parts.width
            if int(owners[b, i]) <= 0:  # of the prompts' part, which is plainly causal
                assert place + rows * parts.width == b * parts.width + min(i, parts.width - 1)
                continue
            sequence, t = divmod(place, time)
            assert (sequence // branches, sequence % branches + 1) == (b, int(owners[b, i]))
            assert int(parts.take[place]) == b * length + i
            keys = [*range(parts.width), *(layout.index[b, sequence % branches]).tolist()]
            seen = parts.mask[sequence, 0, t].tolist()
            exists = [True] * parts.width + layout.mask[b, sequence % branches].tolist()
            found = {j for j, sees, there in zip(keys, seen, exists, strict=True) if sees and there}
            assert found == {
                j for j in range(length) if reference.attends(owners[b].tolist(), i, j)
            }
