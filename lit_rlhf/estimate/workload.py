"""What a step of a module is given: rows of the longest prompts and completions, as its DataModule would make them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.models.branched import pack
from lit_rlhf.modules.remax import GREEDY
from lit_rlhf.options import check_option
from lit_rlhf.types import BranchedBatch, Generation, Prompts, ScoredRollout, Scores


@dataclass(frozen=True)
class Workload:
    """Lengths and numbers of a step on one process.

    Attributes:
        prompts: Rows of a batch.
        prompt_tokens: Of each.
        completion_tokens: Of each completion, or of each sample.
        branches: Completions of a prompt.
    """

    prompts: int
    prompt_tokens: int
    completion_tokens: int
    branches: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_option(value >= 1, self, name, value, "at least 1")

    @property
    def row(self) -> int:
        """Tokens of a row: a prompt with all its completions."""
        return self.prompt_tokens + self.branches * self.completion_tokens

    def batch(self, rows: int) -> dict[str, Any]:
        """A batch of some rows, with every column that a loss may read."""
        prompts, samples = self._mask(rows, self.prompt_tokens), self._samples(rows)
        # Modules refuse completions of a prompt that are the same.
        tokens = samples * (1 + torch.arange(len(samples)) % self.branches)[:, None]
        batch: BranchedBatch = pack(prompts.long(), prompts, tokens, samples, pad_token_id=0)
        shape = (rows, self.branches)
        alone = self.branches == 1
        half = torch.arange(rows) % 2 == 0
        scores = torch.arange(rows * self.branches).view(shape).float()
        columns: dict[str, Any] = {"index": torch.arange(rows), "ref_logprobs": torch.zeros(shape)}
        if alone:
            columns |= {"label": half, "score": scores[:, 0]}
        elif self.branches > 2:
            columns |= {"score": scores, "branch_mask": torch.ones(shape, dtype=torch.bool)}
        return {**batch, **columns}

    def rollout(self, prompts: int, *, values: bool) -> ScoredRollout:
        """A scored rollout in which no completion has ended early."""
        mask = self._samples(prompts)
        zeros = torch.zeros(mask.shape)
        ids = self._mask(prompts, self.prompt_tokens)
        finished = torch.ones(len(mask), dtype=torch.bool)
        generation = Generation(mask.long(), mask, finished, zeros, zeros if values else None)
        scores = torch.arange(len(mask)).float()
        return ScoredRollout(Prompts(ids.long(), ids), generation, Scores(scores, {GREEDY: scores}))

    def _samples(self, prompts: int) -> Tensor:
        return self._mask(prompts * self.branches, self.completion_tokens)

    @staticmethod
    def _mask(rows: int, width: int) -> Tensor:
        return torch.ones(rows, width, dtype=torch.bool)
