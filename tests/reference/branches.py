"""Slow references of `functional.branches`: rows built from lists of tokens."""

from collections.abc import Sequence

Tokens = Sequence[int]


def row(
    prompt: Tokens, branches: Sequence[Tokens], width: int
) -> tuple[list[int], list[int], list[int]]:
    """Ids, branch ids and positions of one branched row."""
    ids, owners, positions = list(prompt), [0] * len(prompt), list(range(len(prompt)))
    for k, branch in enumerate(branches, start=1):
        ids += branch
        owners += [k] * len(branch)
        positions += [len(prompt) + t for t in range(len(branch))]
    gap = width - len(ids)
    return ids + [0] * gap, owners + [-1] * gap, positions + [0] * gap


def attends(owners: Sequence[int], i: int, j: int) -> bool:
    """Whether token i may see token j."""
    return j <= i and owners[j] in (0, owners[i])


def predictor(owners: Sequence[int], i: int) -> int:
    """The last position before i that i sees: where token i is predicted from."""
    return max(j for j in range(i) if attends(owners, i, j))
