"""The tabular world: one prompt and a handful of completions, with a policy that can be any distribution over them.

A `Backbone` around a decoder whose hidden state says which tokens it has seen, and whose LM head is a table of logits
by state. Everything a module does (branched forward, roles, chunked log-probs, loss, reduction) runs as it does for a
language model, in float64, and every expectation is a sum over all completions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.nn.functional import one_hot
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.modules import RLHFModule
from lit_rlhf.types import BranchedBatch

Module = TypeVar("Module", bound=RLHFModule)
PROMPT_TOKEN = 0


class TabularConfig(PretrainedConfig):
    """Size of a table.

    Args:
        vocab_size: Number of tokens.
        depth: Most tokens of a completion.
    """

    model_type = "lit_rlhf_tabular"

    def __init__(self, vocab_size: int = 2, depth: int = 1, **kwargs: Any) -> None:
        self.vocab_size = vocab_size
        self.depth = depth
        self.hidden_size = sum(vocab_size**d for d in range(depth + 1))
        self.num_hidden_layers = self.num_attention_heads = 1
        super().__init__(**kwargs)


class PrefixTrunk(nn.Module):
    """One-hot hidden states of the tokens seen since the prompt, which is the token at position 0.

    States are numbered like the nodes of a heap: the empty completion is 0, and token a leads from s to s V + a + 1.
    """

    def __init__(self, config: TabularConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, 1).requires_grad_(False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = False,
    ) -> BaseModelOutputWithPast:
        """States of all positions, float64; what a position has seen is read off the mask, as attention does."""
        length = input_ids.shape[1]
        plain = torch.arange(length).expand(len(input_ids), -1)
        positions = plain if position_ids is None else position_ids
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None]
        sees = causal if attention_mask is None else attention_mask[:, 0]
        distance = (positions[:, :, None] - positions[:, None, :]).clamp(0, self.config.depth)
        digits = (input_ids + 1)[:, None, :] * self.config.vocab_size**distance
        width, counted = self.config.hidden_size, sees & (positions > 0)[:, None, :]
        state = (digits * counted).sum(-1).clamp_max(width - 1)
        return BaseModelOutputWithPast(last_hidden_state=one_hot(state, width).double())


class TabularModel(PreTrainedModel):
    """A causal language model that is a table: the LM head's column s holds the logits in state s."""

    config_class = TabularConfig
    base_model_prefix = "model"

    def __init__(self, config: TabularConfig) -> None:
        super().__init__(config)
        self.model = PrefixTrunk(config)
        shape = config.hidden_size, config.vocab_size
        self.lm_head = nn.Linear(*shape, bias=False, dtype=torch.float64)

    def get_input_embeddings(self) -> nn.Module:
        """For the device."""
        embedding: nn.Module = self.model.embed_tokens
        return embedding

    def get_output_embeddings(self) -> nn.Module:
        """The table."""
        head: nn.Module = self.lm_head
        return head

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> CausalLMOutputWithPast:
        """Logits of plain rows."""
        hidden = self.model(input_ids, use_cache=use_cache).last_hidden_state
        return CausalLMOutputWithPast(logits=self.lm_head(hidden))


class DoubleHead(nn.Module):
    """A scalar head in float64: with one-hot states, a number for each state.

    Args:
        num_states: Width of the hidden states.
    """

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_states, dtype=torch.float64))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., states) to (...)."""
        values: Tensor = hidden @ self.weight
        return values


@dataclass(frozen=True)
class TabularWorld:
    """A prompt, its completions, a reward of each and a reference policy.

    Attributes:
        completions: Token ids; prefix-free, so that they are the leaves of a tree.
        rewards: (Y,) float64.
        reference: (Y,) float64 probabilities.
        vocab_size: Number of tokens.
    """

    completions: tuple[tuple[int, ...], ...]
    rewards: Tensor
    reference: Tensor
    vocab_size: int

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each completion, (Y,) float64."""
        return torch.tensor([len(y) for y in self.completions], dtype=torch.float64)

    @property
    def depth(self) -> int:
        """Tokens of the longest completion."""
        return max(map(len, self.completions))

    @cached_property
    def finished(self) -> Tensor:
        """(Y,) bool: whether a completion ends with the last token of the vocabulary, EOS, and is not cut."""
        return torch.tensor([y[-1] == self.vocab_size - 1 for y in self.completions])

    @cached_property
    def final_states(self) -> Tensor:
        """Number of the state in which each completion ends, (Y,)."""
        return torch.tensor([self.state(y) for y in self.completions])

    @cached_property
    def step_states(self) -> list[list[int]]:
        """Numbers of the states after each token of each completion; the last is the one it ends in."""
        return [[self.state(y[: t + 1]) for t in range(len(y))] for y in self.completions]

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """Tokens of each completion, (Y, T), 0 behind its end, and where there are some, (Y, T) bool."""
        tokens = _pad([list(y) for y in self.completions], 0)
        return tokens, torch.arange(self.depth) < self.lengths[:, None]

    @cached_property
    def steps(self) -> tuple[Tensor, Tensor]:
        """Of every token that may follow a state: (S, Y), whose path it is on; (S, S), which share its state."""
        found = sorted({(y[:t], y[t]) for y in self.completions for t in range(len(y))})
        states = [state for state, _ in found]
        through = [[y[: len(s) + 1] == (*s, token) for y in self.completions] for s, token in found]
        together = [[state == other for other in states] for state in states]
        return torch.tensor(through).double(), torch.tensor(together).double()

    def backbone(self, policy: Tensor | None = None) -> Backbone:
        """A backbone whose policy is the given distribution (Y,); default: the reference."""
        config = TabularConfig(self.vocab_size, self.depth)
        spec = ModelSpec(config={}, branching="auto")
        backbone = Backbone(TabularModel(config), _tokenizer(self.vocab_size), spec)
        self.set_policy(backbone, self.reference if policy is None else policy)
        return backbone

    def place(self, module: Module) -> Module:
        """Give a module without a backbone this world's, the reference as its policy."""
        module.backbone = self.backbone()
        module.configure_roles()
        for name in list(module.backbone.heads):  # float64, at 0, in the place of the float32 ones
            module.backbone.heads[name] = DoubleHead(module.backbone.hidden_size)
        return module.train()

    def set_policy(self, backbone: Backbone, policy: Tensor) -> None:
        """Write a distribution (Y,) into a backbone's table; what it gives no probability gets e^-40 of the rest."""
        table = torch.zeros_like(backbone.model.lm_head.weight)
        for state, prefix in self._states().items():
            begun = [
                [y[: len(prefix) + 1] == (*prefix, token) for y in self.completions]
                for token in range(self.vocab_size)
            ]
            mass = torch.stack([policy[torch.tensor(inside)].sum() for inside in begun])
            table[:, state] = mass.clamp_min(1e-18 * float(mass.sum()) + 1e-300).log()
        with torch.no_grad():
            backbone.model.lm_head.weight.copy_(table)

    def policy(self, backbone: Backbone) -> Tensor:
        """The distribution (Y,) of a backbone's policy, by its own forward on all completions."""
        with torch.no_grad():
            out = backbone(self._everything, num_branches=len(self.completions), logprobs=True)
        policy: Tensor = out.logprobs.sum(-1).exp()
        return policy

    @cached_property
    def _everything(self) -> BranchedBatch:
        """All completions in one row."""
        return self.batch([range(len(self.completions))])

    def batch(self, rows: Sequence[Sequence[int]]) -> BranchedBatch:
        """A branched batch of rows of completions, each named by its number."""
        ids, branches, positions = [], [], []
        for row in rows:
            tokens = [self.completions[y] for y in row]
            ids.append([PROMPT_TOKEN, *(token for y in tokens for token in y)])
            branches.append([0, *(k + 1 for k, y in enumerate(tokens) for _ in y)])
            positions.append([0, *(t + 1 for y in tokens for t in range(len(y)))])
        return BranchedBatch(
            input_ids=_pad(ids, 0), branch_ids=_pad(branches, -1), position_ids=_pad(positions, 0)
        )

    def _states(self) -> dict[int, tuple[int, ...]]:
        """Number and tokens of each state in which a policy still has a choice."""
        prefixes = {y[:t] for y in self.completions for t in range(len(y))}
        return {self.state(prefix): prefix for prefix in sorted(prefixes)}

    def state(self, prefix: tuple[int, ...]) -> int:
        """Number of the state after some tokens."""
        state = 0
        for token in prefix:
            state = state * self.vocab_size + token + 1
        return state


def bandit(num_completions: int = 5) -> TabularWorld:
    """Completions of one token each: 2 to 7 of them."""
    n, completions = num_completions, tuple((y,) for y in range(num_completions))
    rewards = torch.tensor([1.0, -0.3, 0.4, -1.2, 0.7, 0.1, -0.6], dtype=torch.float64)[:n]
    weights = torch.tensor([2.0, 3.0, 1.0, 1.5, 0.8, 1.2, 0.5], dtype=torch.float64)[:n]
    return TabularWorld(completions, rewards, weights / weights.sum(), n)


def tree() -> TabularWorld:
    """Two steps over three tokens, the last of which ends a completion: seven completions of one or two tokens."""
    end = 2
    completions = ((end,), *product((0, 1), range(3)))
    rewards = torch.tensor([0.2, 1.0, -0.4, 0.3, -1.1, 0.6, -0.2], dtype=torch.float64)
    weights = torch.tensor([2.0, 1.0, 1.5, 0.7, 1.2, 0.6, 1.8], dtype=torch.float64)
    return TabularWorld(completions, rewards, weights / weights.sum(), 3)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half the sum of absolute differences of two distributions.

    Example:
        >>> total_variation(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
        0.5
    """
    return float((p - q).abs().sum() / 2)


def _pad(rows: list[list[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def _tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    words = {f"t{token}": token for token in range(vocab_size)}
    last = f"t{vocab_size - 1}"
    core = Tokenizer(WordLevel(vocab=words, unk_token=last))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=last, unk_token=last)
