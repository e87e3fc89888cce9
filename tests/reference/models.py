"""Slow references of `models`: each branch a row of its own, without padding, through transformers' own model."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

Row = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prompt and its branches."""


class Sequences(NamedTuple):
    """One entry per branch; each of the length of that branch."""

    logprobs: list[Tensor]
    entropy: list[Tensor]
    states: list[Tensor]  # before each token
    last: list[Tensor]  # at the last token


def plain_model(path: Path, **options: object) -> PreTrainedModel:
    """The model as transformers loads it, with its eager attention."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="eager", **options
    )
    return model.eval()


def separate_rows(
    model: PreTrainedModel, rows: Sequence[Row], temperature: float = 1.0
) -> Sequences:
    """Each branch alone behind its own copy of the prompt."""
    found = Sequences([], [], [], [])
    for prompt, branches in rows:
        for branch in branches:
            ids = torch.tensor([[*prompt, *branch]])
            output = model(input_ids=ids, output_hidden_states=True)
            own = slice(len(prompt) - 1, ids.shape[1] - 1)
            logprobs = (output.logits[0, own].float() / temperature).log_softmax(-1)
            found.logprobs.append(
                torch.stack([logprobs[t, token] for t, token in enumerate(branch)])
            )
            found.entropy.append(-(logprobs.exp() * logprobs).sum(-1))
            found.states.append(output.hidden_states[-1][0, own].float())
            found.last.append(output.hidden_states[-1][0, -1].float())
    return found


def padded(parts: Sequence[Tensor], width: int) -> Tensor:
    """Vectors as rows, 0 behind their ends."""
    return torch.stack([torch.cat([part, part.new_zeros(width - len(part))]) for part in parts])
