"""From one model's tokens to another's, by way of text."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.functional.masking import padded_rows
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


class TextReader:
    """Reads prompts and completions, as texts, with a reward model's tokenizer.

    Plain prompts are read with the special tokens that the tokenizer puts around text. A completion that has finished
    ends in EOS.

    Args:
        tokenizer: The reward model's.

    Raises:
        ConfigurationError: It has no EOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise ConfigurationError(
                "The reward model's tokenizer isn't the policy's, and it has no EOS token to end completions with. Set "
                "its eos_token and save it again."
            )

    def render(self, messages: Any, source: str) -> str:
        """Turns as the chat template writes them, where the assistant's answer is to come.

        Args:
            messages: A text, the user's only turn, or turns.
            source: Where they are from, for errors.

        Raises:
            DataError: They are no messages.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if not isinstance(turns, Sequence) or not all(isinstance(turn, Mapping) for turn in turns):
            raise DataError(f"{source} holds {messages!r}, not a text or a list of messages.")
        plain = [dict(turn) for turn in turns]
        render = partial(self.tokenizer.apply_chat_template, tokenize=False)
        return str(render(plain, add_generation_prompt=True))

    def read(
        self, text: str, responses: Sequence[str], finished: Sequence[bool], *, rendered: bool
    ) -> tuple[list[int], list[list[int]]]:
        """Ids of a prompt, and of its completions.

        Args:
            text: The prompt.
            responses: Its completions, without special tokens.
            finished: Whether each came to its end.
            rendered: Whether a chat template wrote the prompt, special tokens included.
        """
        special = not rendered
        eos, bos = int(self.tokenizer.eos_token_id), self.tokenizer.bos_token_id
        prompt = self._encode(text, special=special) or [eos if bos is None else int(bos)]
        tails = []
        for response, ended in zip(responses, finished, strict=True):
            joint = self._encode(text + response, special=special)
            goes_on = joint[: len(prompt)] == prompt
            ids = joint[len(prompt) :] if goes_on else self._encode(response, special=False)
            tails.append([*ids, eos] if ended or not ids else ids)
        return prompt, tails

    def _encode(self, text: str, *, special: bool) -> list[int]:
        found = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        ids = [int(index) for index in found]
        # Some tokenizers put EOS behind every text; a prompt goes on, and a completion is given its own.
        return ids[:-1] if special and ids and ids[-1] == self.tokenizer.eos_token_id else ids


class Retokenizer:
    """Writes the policy's tokens as text and reads it with the reward model's tokenizer; see `TextReader`.

    Where a column of the data set holds the conversation as messages, it is rendered by the reward's chat template,
    with the completion as the assistant's answer.

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
        self.reader = TextReader(reward)
        self.conversation_column = conversation_column
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
        samples = len(completions.tokens) // max(len(completions.prompt_ids), 1)
        column = self.conversation_column
        if column is None:
            texts = plain_prompts(self.policy, completions)
        else:
            given = read_column(completions, column, "ModelReward.conversation_column")
            source = f"The column {column!r}"
            texts = [self.reader.render(messages, source) for messages in given[::samples]]
        finished = completions.finished.tolist()
        prompts, tails = [], []
        for i, text in enumerate(texts):
            own = slice(i * samples, (i + 1) * samples)
            answers, rendered = completions.responses[own], column is not None
            prompt, found = self.reader.read(text, answers, finished[own], rendered=rendered)
            prompts.append(prompt)
            tails += found
        return token_rows(prompts, tails, completions.tokens.device)


def plain_prompts(policy: PreTrainedTokenizerBase, completions: Completions) -> list[str]:
    """The B prompts as texts.

    Raises:
        ConfigurationError: They hold special tokens of the policy.
    """
    pairs = zip(completions.prompt_ids, completions.prompt_mask.bool(), strict=True)
    rows = [ids[mask] for ids, mask in pairs]
    for i, ids in enumerate(rows):
        special = set(ids[1:].tolist()) & set(policy.all_special_ids)
        if special:
            raise ConfigurationError(
                f"Prompt {i} holds the policy's special tokens {policy.convert_ids_to_tokens(sorted(special))}, which "
                "the reward model's tokenizer would read as other text. Name the column with the messages of the "
                "prompt: reward.init_args.conversation_column (and let the data module carry it: format.columns)."
            )
    return [str(policy.decode(ids, skip_special_tokens=True)) for ids in rows]


def token_rows(
    prompts: list[list[int]], completions: list[list[int]], device: torch.device
) -> TokenRows:
    """Rows of lists of ids."""
    return TokenRows(*padded_rows(prompts, device), *padded_rows(completions, device))


def _rules(tokenizer: PreTrainedTokenizerBase) -> object:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return type(tokenizer).__name__
    core = json.loads(backend.to_str())
    parts = ("normalizer", "pre_tokenizer", "post_processor", "model")
    return {name: core.get(name) for name in parts}


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what `same_ids` compares, so that two machines can; a pad token of its own doesn't count.

    Returns:
        64 hexadecimal digits.
    """
    meant = tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token
    own_pad = None if tokenizer.pad_token in meant else tokenizer.pad_token
    vocabulary = {k: v for k, v in tokenizer.get_vocab().items() if k != own_pad}
    parts = [vocabulary, tokenizer.eos_token, _rules(tokenizer)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
