"""From one model's tokens to another's, by way of text."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.rewards.base import read_column
from lit_rlhf.tokenizers import tokenizer_fingerprint
from lit_rlhf.types import Completions


class TokenRows(NamedTuple):
    """Prompts (B, P) and their completions (N, T), right-padded, with masks."""

    prompt_ids: Tensor
    prompt_mask: Tensor
    tokens: Tensor
    mask: Tensor


def same_ids(policy: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase) -> bool:
    """Whether every id that the policy can emit means the same to the reward model.

    Exports may have been given another pad token, or one more, since padding is told by the mask; nothing else may
    differ.
    """
    if tokenizer_fingerprint(policy) == tokenizer_fingerprint(reward):
        return True
    ours, theirs = policy.get_vocab(), reward.get_vocab()
    alike = all(theirs.get(token) == index for token, index in ours.items())
    return alike and policy.eos_token == reward.eos_token and _rules(policy) == _rules(reward)


class Retokenizer:
    """Writes the policy's tokens as text and reads it with the reward model's tokenizer.

    Plain prompts are read with the special tokens that the reward's tokenizer puts around text. A completion that has
    finished ends in the reward's EOS. Where a column of the data set holds the conversation as messages, it is rendered
    by the reward's chat template, with the completion as the assistant's answer.

    Args:
        policy: The policy's tokenizer.
        reward: The reward model's.
        conversation_column: Column with the messages of the prompt, `[{"role": .., "content": ..}, ..]`.

    Raises:
        ConfigurationError: The reward's tokenizer has no EOS token, or no chat template where messages are to be
            rendered.
    """

    def __init__(
        self,
        policy: PreTrainedTokenizerBase,
        reward: PreTrainedTokenizerBase,
        conversation_column: str | None = None,
    ) -> None:
        self.policy = policy
        self.reward = reward
        self.conversation_column = conversation_column
        if reward.eos_token_id is None:
            raise ConfigurationError(
                "The reward model's tokenizer isn't the policy's, and it has no EOS token to end completions with. Set "
                "its eos_token and save it again."
            )
        if conversation_column is not None and reward.chat_template is None:
            raise ConfigurationError(
                f"conversation_column={conversation_column!r} is to be rendered with the reward model's chat template, "
                "and its tokenizer has none."
            )

    def __call__(self, completions: Completions) -> TokenRows:
        """The same completions in the reward model's tokens.

        Raises:
            ConfigurationError: Prompts hold the policy's own special tokens, which mean nothing to the reward model,
                and no column with their messages is named.
            DataError: The column isn't there.
        """
        num_prompts = len(completions.prompt_ids)
        samples = len(completions.tokens) // max(num_prompts, 1)
        if self.conversation_column is None:
            texts = self._plain_prompts(completions)
        else:
            owner = "ModelReward.conversation_column"
            column = read_column(completions, self.conversation_column, owner)
            texts = [self._render(messages) for messages in column[::samples]]
        special = self.conversation_column is None
        eos, bos = int(self.reward.eos_token_id), self.reward.bos_token_id
        start = eos if bos is None else int(bos)
        prompts = [self._encode(text, special=special) or [start] for text in texts]
        tails = []
        ended = zip(completions.responses, completions.finished.tolist(), strict=True)
        for i, (response, finished) in enumerate(ended):
            text, prompt = texts[i // samples], prompts[i // samples]
            joint = self._encode(text + response, special=special)
            goes_on = joint[: len(prompt)] == prompt
            ids = joint[len(prompt) :] if goes_on else self._encode(response, special=False)
            tails.append([*ids, eos] if finished or not ids else ids)
        device = completions.tokens.device
        return TokenRows(*_padded(prompts, device), *_padded(tails, device))

    def _plain_prompts(self, completions: Completions) -> list[str]:
        pairs = zip(completions.prompt_ids, completions.prompt_mask.bool(), strict=True)
        rows = [ids[mask] for ids, mask in pairs]
        for i, ids in enumerate(rows):
            special = set(ids[1:].tolist()) & set(self.policy.all_special_ids)
            if special:
                raise ConfigurationError(
                    f"Prompt {i} holds the policy's special tokens "
                    f"{self.policy.convert_ids_to_tokens(sorted(special))}, which the reward model's tokenizer would "
                    "read as other text. Name the column with the messages of the prompt: "
                    "reward.init_args.conversation_column (and let the data module carry it: format.columns)."
                )
        return [str(self.policy.decode(ids, skip_special_tokens=True)) for ids in rows]

    def _render(self, messages: Any) -> str:
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if not isinstance(turns, Sequence) or not all(isinstance(turn, Mapping) for turn in turns):
            raise DataError(
                f"The column {self.conversation_column!r} holds {messages!r}, not a text or a list of messages."
            )
        plain = [dict(turn) for turn in turns]
        render = partial(self.reward.apply_chat_template, tokenize=False)
        return str(render(plain, add_generation_prompt=True))

    def _encode(self, text: str, *, special: bool) -> list[int]:
        ids = [int(index) for index in self.reward(text, add_special_tokens=special)["input_ids"]]
        # Some tokenizers put EOS behind every text; a prompt goes on, and a completion is given its own.
        return ids[:-1] if special and ids and ids[-1] == self.reward.eos_token_id else ids


def _padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max((len(row) for row in rows), default=1)
    wide = [row + [0] * (width - len(row)) for row in rows]
    ids = torch.tensor(wide, dtype=torch.int64, device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(width, device=device) < lengths[:, None]


def _rules(tokenizer: PreTrainedTokenizerBase) -> object:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return type(tokenizer).__name__
    core = json.loads(backend.to_str())
    parts = ("normalizer", "pre_tokenizer", "post_processor", "model")
    return {name: core.get(name) for name in parts}
