"""Generated arithmetic with exact answers: data for rule-based rewards that need no download."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from lit_rlhf.data.conversion import Source
from lit_rlhf.options import check_option, is_whole
from lit_rlhf.seeding import generator

_MARKER = "####"


class ArithmeticSource(Source):
    r"""Sums and differences as rows like GSM8K's (arXiv:2110.14168): a question, worked steps, an answer.

    A row has the columns `prompt`; `completion`, which works the terms off from left to right and ends in `#### ` and
    the answer, for supervised fine-tuning; `answer`, for `ExactAnswerReward`. It is a pure function of the seed and its
    number: the first n of more rows are the same n rows. Questions may repeat; `val_fraction` keeps equal ones on one
    side.

    Args:
        rows: Number of rows, 1 or more.
        terms: Numbers in a question, 2 or more: each further one is a further step.
        largest: Terms are drawn from 0 to this; 1 or more.
        seed: Other seeds give other questions.

    Raises:
        ConfigurationError: A number out of its range.

    Example:
        >>> row = next(iter(ArithmeticSource(rows=1, terms=3).load()))
        >>> row["prompt"]
        'What is 2 - 80 + 25? End with #### and the answer.\n'
        >>> row["completion"]
        '2 - 80 = -78\n-78 + 25 = -53\n#### -53'
    """

    def __init__(self, rows: int = 1000, terms: int = 2, largest: int = 99, seed: int = 0) -> None:
        least = {"rows": (rows, 1), "terms": (terms, 2), "largest": (largest, 1)}
        for name, (value, low) in least.items():
            valid = is_whole(value, low)
            check_option(valid, self, name, value, f"a whole number of {low} or more")
        check_option(is_whole(seed), self, "seed", seed, "a whole number")
        self.rows, self.terms, self.largest, self.seed = rows, terms, largest, seed

    def load(self) -> Iterator[Mapping[str, Any]]:
        """Make the rows."""
        for index in range(self.rows):
            yield self._row(index)

    def __str__(self) -> str:
        """What it was asked for."""
        return f"ArithmeticSource(rows={self.rows}, terms={self.terms}, largest={self.largest}, seed={self.seed})"

    def _row(self, index: int) -> dict[str, str]:
        draws = generator(self.seed, "arithmetic", index)
        first, *others = (_draw(self.largest + 1, draws) for _ in range(self.terms))
        question, total, steps = str(first), first, []
        for term in others:
            sign = ("+", "-")[_draw(2, draws)]
            result = total + term if sign == "+" else total - term
            question += f" {sign} {term}"
            steps.append(f"{total} {sign} {term} = {result}")
            total = result
        return {
            "prompt": f"What is {question}? End with {_MARKER} and the answer.\n",
            "completion": "\n".join([*steps, f"{_MARKER} {total}"]),
            "answer": str(total),
        }


def _draw(below: int, draws: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=draws))
