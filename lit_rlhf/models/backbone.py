"""One decoder, many roles."""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.bitsandbytes import eight_bit_layers, keep_arithmetic
from lit_rlhf.models.adapters import RoleAdapters
from lit_rlhf.models.branched import BranchRunner, BranchStates, Costs, spread
from lit_rlhf.models.cards import read_record, recorded_prompts
from lit_rlhf.models.checks import check_decoder
from lit_rlhf.models.kernels import use_kernels
from lit_rlhf.models.kernels.attention import apart, current_parts
from lit_rlhf.models.lm_head import Comparison, LMHead, ScalarHead
from lit_rlhf.models.loading import (
    DTYPES,
    embeddings,
    load_model,
    prepare_modules,
    recompute_layers,
    refuse_unmeetable,
)
from lit_rlhf.models.precision import resolve_dtype
from lit_rlhf.models.specs import DTypeName, LoraSpec, ModelSpec
from lit_rlhf.prompt_form import PromptForm
from lit_rlhf.tokenizers import completion_end_ids, pad_token_id
from lit_rlhf.types import ATTRIBUTE, GATE, BranchedBatch, BranchOutput

ROLES = ("policy", "reference", "reward", "value")


class Backbone(nn.Module):
    """A transformers decoder that plays policy, reference, reward and value model.

    A role is an adapter on the one base, a scalar head, or both; a role without an adapter is the base itself. With
    full fine-tuning the model itself is the policy, and other roles live in backbones of their own.

    Args:
        model: A causal language model, or with `lm_head=False` its trunk; its dropout is switched off, and its modules
            are switched to faster ones with `spec.kernels: auto`.
        tokenizer: The model's.
        spec: How to run and adapt it; what it says of loading (`name`, `dtype`, ...) is a record here.
        lm_head: Whether log-probs and logits will be asked for. Without, the trunk alone is needed: a reward or value
            model of its own has no unused parameters, which distributed strategies refuse.
        trainable: Whether the base may be trained where `spec.lora` is None; False for references and loaded rewards.

    Raises:
        ConfigurationError: The spec can't be met; the message names the option.
    """

    tokenizer: PreTrainedTokenizerBase
    heads: nn.ModuleDict

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: ModelSpec,
        *,
        lm_head: bool = True,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        if lm_head and model.base_model is model:
            raise ConfigurationError(
                f"transformers gives {type(model).__name__} no trunk of its own (base_model), from which states would "
                "be taken for the LM head. It can't act as a policy."
            )
        prepare_modules(model)
        if spec.kernels == "auto":
            use_kernels(model, spec.attention)
        self.spec = spec = replace(spec, dtype=resolve_dtype(spec.dtype))
        self.tokenizer = tokenizer
        self.model = model
        self.heads = nn.ModuleDict()
        self.frozen = not trainable
        self.score_mean, self.score_std = 0.0, 1.0  # of a loaded reward model's held-out scores
        self.reward_note = ""  # what of a trained reward model its head is
        self.prompts: PromptForm | None = None  # of the data that its weights were trained on last
        # By head: scores are read before a trailing token of this id.
        self.score_skip_ids: dict[str, int] = {}
        config = model.config.get_text_config()
        self.decoded_by: set[str] = set()  # engines whose decode was compared with the forward
        self.hidden_size: int = config.hidden_size
        self.pad_token_id = pad_token_id(tokenizer)
        generation = getattr(model, "generation_config", None)
        self.eos_token_ids = completion_end_ids(tokenizer, generation, config)
        self.has_lora = spec.lora is not None or spec.adapter is not None
        if self.has_lora or self.frozen:
            model.requires_grad_(False)
        self._lm_head = LMHead(model, spec.kernels == "plain") if lm_head else None
        self._adapters = RoleAdapters(
            model, self.decoder, model.base_model_prefix, seed=spec.init_seed, kernels=spec.kernels
        )
        self._runner = BranchRunner(self.decoder, config, spec.attention, spec.branching)
        if spec.gradient_checkpointing:
            draws = spec.lora is not None and spec.lora.dropout > 0.0
            recompute_layers(self.decoder, self._recompute_contexts, draws=draws)
        self._eight_bit = eight_bit_layers(model)
        self.train()
        check_decoder(model, self._runner, self._lm_head)

    @classmethod
    def load(cls, spec: ModelSpec, *, lm_head: bool = True, trainable: bool = True) -> Self:
        """Load or initialise what a spec says.

        Raises:
            ConfigurationError: The spec can't be met; the message names the option.
            CheckpointError: Weights are missing in the files.
        """
        refuse_unmeetable(spec, trainable=trainable)
        model, tokenizer = load_model(spec, lm_head=lm_head)
        backbone = cls(model, tokenizer, spec, lm_head=lm_head, trainable=trainable)
        backbone.prompts = recorded_prompts(read_record(Path(spec.adapter or spec.name or "")))
        return backbone

    @property
    def decoder(self) -> nn.Module:
        """The trunk, adapters injected: called as a transformers `*Model`, it returns the last hidden state."""
        trunk: nn.Module = self.model.base_model
        return trunk

    @property
    def device(self) -> torch.device:
        """Where the embeddings live."""
        return embeddings(self.model).device

    @property
    def context_length(self) -> int | None:
        """Most tokens that the model reads; None where its config doesn't say."""
        config = self.model.config.get_text_config()
        found: int | None = getattr(config, "max_position_embeddings", None)
        return found

    @property
    def adapters(self) -> tuple[str, ...]:
        """Roles that have an adapter."""
        return tuple(self._adapters.configs)

    @property
    def has_lm_head(self) -> bool:
        """Whether log-probs and logits can be asked for."""
        return self._lm_head is not None

    @property
    def vocabulary_size(self) -> int:
        """Rows of the LM head, of which the last may belong to no token."""
        return int(self._require_lm_head().module.out_features)

    @property
    def costs(self) -> Costs:
        """FLOPs of the trunk's forward per token and per pair of attention, adapters left out."""
        return self._runner.costs

    # -- roles --------------------------------------------------------------------------------------------------------

    def free_role(self, name: str) -> str:
        """A role that has neither adapter nor head: of this name, or with a number behind it."""
        names = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2)))
        return next(each for each in names if each not in {*self.adapters, *self.heads})

    def add_adapter(
        self,
        role: str,
        *,
        lora: LoraSpec | None = None,
        path: str | None = None,
        copy_from: str | None = None,
        trainable: bool = True,
    ) -> None:
        """Give a role an adapter: fresh (the identity), read from a directory, or copied from another role.

        The policy of a spec with `adapter` starts from that adapter, and a frozen copy becomes the role "reference".

        Args:
            role: "policy", "reference", "reward", "value", or a name of your own.
            lora: Shape of a fresh adapter; default: `spec.lora`.
            path: Directory that peft or this library wrote. A scalar head in it becomes the role's head.
            copy_from: Role to copy.
            trainable: Whether its weights get gradients; settled here for good.

        Raises:
            ConfigurationError: The base is being trained, the role has an adapter, there is no such role to copy.
            CheckpointError: The directory doesn't fit the base.
        """
        base = [each for name, each in self.model.named_parameters() if ".lora_" not in name]
        if any(parameter.requires_grad for parameter in base):
            raise ConfigurationError(
                f"No adapter {role!r} can stand on a base that is trained in full. Set lora, or load the base with "
                "trainable=False."
            )
        if copy_from is not None:
            self._require(copy_from, self.adapters, "adapter")
            self._adapters.copy(role, copy_from, trainable=trainable)
        elif path is not None:
            self._load_adapter(role, path, trainable)
        elif role == "policy" and self.spec.adapter is not None:
            self._load_adapter(role, self.spec.adapter, trainable)
            self._adapters.copy("reference", role, trainable=False)
        else:
            self._adapters.add(role, lora or self.spec.lora or LoraSpec(), trainable=trainable)

    def add_head(
        self,
        role: str,
        *,
        copy_from: str | None = None,
        state: Mapping[str, Tensor] | None = None,
        drawn: bool | None = None,
        trainable: bool = True,
    ) -> None:
        r"""Give a role a float32 scalar head.

        A fresh head of the role "reward" is drawn with $\sigma = 1/\sqrt{h + 1}$ (arXiv:1909.08593); others start at 0,
        so that a value head on the policy's states gives the policy no gradient before it has learned something.

        Args:
            role: Name of the head.
            copy_from: Head to copy.
            state: `{"weight": (h,)}` of a head of another backbone.
            drawn: Whether a fresh head is drawn so, or starts at 0; default: as said above.
            trainable: Whether its weight gets gradients.
        """
        if role in self.heads:
            raise ConfigurationError(f"There is a head for the role {role!r} already.")
        if copy_from is not None:
            self._require(copy_from, self.heads, "head")
            state = self.heads[copy_from].state_dict()
        drawn = role == "reward" if drawn is None else drawn
        std = ScalarHead.reward_std(self.hidden_size) if drawn else 0.0
        head = ScalarHead(self.hidden_size, std, self.spec.init_seed, role, self.device)
        if state is not None:
            head.weight.data.copy_(state["weight"].reshape(-1))
        self.heads[role] = head.requires_grad_(trainable)

    def use_role(self, role: str | None) -> AbstractContextManager[None]:
        """Switch to a role's adapter, or with None or a role without one to the base, for the time of a `with`.

        Nests, restores on exceptions and leaves `requires_grad` and training flags alone.

        Raises:
            ConfigurationError: No such role; or the reference of a model that is itself being trained.
        """
        if role is None or role in self._adapters.configs:
            return self._adapters.use(role)
        self._require(role, (*ROLES, *self.heads), "role")
        if role == "reference" and not (self.has_lora or self.frozen):
            raise ConfigurationError(
                "A model trained in full is no longer its own reference. Keep `frozen_copy()` of it and call that."
            )
        return self._adapters.use(None)

    def frozen_copy(self, dtype: DTypeName | None = None) -> "Backbone":
        """A deep copy without gradients, in eval mode, as it is now.

        Args:
            dtype: Of the copy's base weights; default: as they are. "bfloat16" halves a float32 reference.
        """
        twin = copy.deepcopy(self, {id(self.tokenizer): self.tokenizer})
        twin.requires_grad_(False)
        twin.zero_grad(set_to_none=True)
        twin.frozen = True
        if dtype is not None:
            twin.spec = replace(self.spec, dtype=dtype)
            for name, parameter in twin.model.named_parameters():
                if ".lora_" not in name and parameter.is_floating_point():
                    parameter.data = parameter.data.to(DTYPES[dtype])
        return twin.eval()

    def adapted_layers(self, role: str) -> list[nn.Module]:
        """Peft's layers that a role's adapter changes."""
        return list(self._adapters.layers(role).values())

    def adapter_weights(self, role: str) -> dict[str, nn.Parameter]:
        """A role's matrices A and B by their path in the trunk, without the adapter's name."""
        self._require(role, self.adapters, "adapter")
        return self._adapters.parameters(role)

    def save_adapter(
        self, role: str, directory: Path, *, base: str | None, task: str, head: Tensor | None = None
    ) -> None:
        """Write a role's adapter as peft does; see `export_policy` and `export_reward`."""
        self._require(role, self.adapters, "adapter")
        self._adapters.save(role, directory, base=base, task=task, head=head)

    # -- computing ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        batch: BranchedBatch,
        *,
        num_branches: int,
        role: str | None = "policy",
        logprobs: bool = False,
        entropy: bool = False,
        values: str | None = None,
        scores: str | Sequence[str] | None = None,
        temperature: float = 1.0,
        entropy_grad: bool = False,
        collision: bool = False,
        hidden: bool = False,
        against: Comparison | None = None,
    ) -> BranchOutput:
        """Evaluate the branches of a batch under a role; N = B * K sequences, T tokens of the longest.

        All that is computed with a role's weights is computed here: sharded ones are whole within a call alone.

        Args:
            batch: Rows of prompts with K branches each.
            num_branches: K.
            role: Whose adapter is on.
            logprobs: Log-probs of the branches' tokens; only their positions go through the LM head.
            entropy: Entropy of the next-token distribution at each of them.
            values: Name of the head to apply at the state before each token.
            scores: Name of the head to apply at each branch's last token; of several, scores are (N, heads). Where
                heads are gated (`types.GATE`), "reward" is what they make together.
            temperature: Divides the logits.
            entropy_grad: Whether the entropy carries a gradient.
            collision: Log of the chance that two draws from that distribution agree, without gradient.
            hidden: The states before the branches' tokens, for another model's `against`.
            against: Another model's states, to compare the next-token distributions with.
        """
        with self.use_role(role):
            states = self._runner(batch, num_branches)
        result: dict[str, Tensor] = {}
        if logprobs or entropy or collision or hidden or values is not None or against is not None:
            wanted = states.positions()  # of the n tokens; only states before them go through heads
            picked = states.hidden.index_select(0, states.source.flatten()[wanted])  # (n, h)
            tokens = states.tokens.flatten()[wanted]
            found: dict[str, Tensor] = {}  # (n,)
            if logprobs or entropy:
                of_tokens = self._require_lm_head().logprobs(
                    picked,
                    tokens,
                    temperature=temperature,
                    entropy=entropy,
                    entropy_grad=entropy_grad,
                )
                found["logprobs"] = of_tokens.logprobs
                if of_tokens.entropy is not None:
                    found["entropy"] = of_tokens.entropy
            if collision:
                found["collision"] = self._require_lm_head().collision(picked, temperature)
            if values is not None:
                found["values"] = self.head(values)(picked)
            if against is not None:
                found["divergence"], found["log_ratio"] = self._require_lm_head().compare(
                    picked, tokens, against, temperature
                )
            result = {name: spread(x, wanted, states.mask.shape) for name, x in found.items()}
            if hidden:
                result["hidden"] = picked
        if scores is not None:
            result["scores"] = self._scores(states, scores)
        return BranchOutput(mask=states.mask, **result)

    def logits(self, hidden: Tensor, product: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Next-token logits (..., V) in float32 of hidden states (..., h), scaled and capped as the config says.

        Args:
            hidden: States, (..., h).
            product: Computes what the LM head's linear layer would, from its weights laid out in another way.
        """
        return self._require_lm_head().logits(hidden, product)

    def head(self, name: str) -> nn.Module:
        """The scalar head of a name, from hidden states (..., h) to (...) in float32.

        Raises:
            ConfigurationError: There is none of that name.
        """
        self._require(name, self.heads, "head")
        return self.heads[name]

    def train(self, mode: bool = True) -> "Backbone":
        """As in torch, but 8-bit layers on CPU stay in training mode.

        In eval mode bitsandbytes computes them otherwise (with 8-bit activations), and a policy's log-probs would
        differ between rollout and update.
        """
        super().train(mode)
        for layer in self._eight_bit:
            keep_arithmetic(layer)
        return self

    # -- inner parts --------------------------------------------------------------------------------------------------

    def _load_adapter(self, role: str, path: str, trainable: bool) -> None:
        extra = self._adapters.load(role, path, trainable=trainable)
        head = extra.pop("score.weight", None)
        if head is not None:
            self.add_head(role, state={"weight": head}, trainable=trainable)
            if not read_record(Path(path)) and (Path(path) / "tokenizer_config.json").is_file():
                # A reward model of others: transformers reads scores before trailing padding, which they let equal EOS.
                self.score_skip_ids[role] = self.pad_token_id
        if extra:
            raise ConfigurationError(
                f"The adapter {path!r} holds tensors of no layer: {sorted(extra)[:5]}."
            )

    def _recompute_contexts(
        self,
    ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        # Backward runs when another role may be on, or none: recompute under the one of the forward.
        role, parts = self._adapters.active, current_parts()

        @contextmanager
        def as_now() -> Iterator[None]:
            with self._adapters.use(role), apart(parts):
                yield

        return nullcontext(), as_now()

    def _scores(self, states: BranchStates, heads: str | Sequence[str]) -> Tensor:
        if not isinstance(heads, str):
            return torch.stack([self._scores(states, head) for head in heads], -1)
        gates = [name for name in self.heads if name.startswith(GATE)]
        if heads == "reward" and heads not in self.heads and gates:
            parts = [gate.replace(GATE, ATTRIBUTE) for gate in gates]
            weights = self._scores(states, gates).softmax(-1)
            return (weights * self._scores(states, parts)).sum(-1)
        skipped = self.score_skip_ids.get(heads)
        positions = states.last if skipped is None else states.before(skipped)
        if heads.startswith(GATE):
            positions = states.source[:, 0]  # where the prompt ends
        scores: Tensor = self.head(heads)(states.hidden[positions])
        return scores

    def _require_lm_head(self) -> LMHead:
        if self._lm_head is None:
            raise ConfigurationError(
                "This backbone was loaded without its LM head (lm_head=False): it has no log-probs."
            )
        return self._lm_head

    @staticmethod
    def _require(name: str, known: Any, what: str) -> None:
        if name not in known:
            raise ConfigurationError(f"There is no {what} {name!r}; there are {sorted(known)}.")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the time of a `with`; each submodule's own flag is restored, so frozen parts stay in eval mode."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, flag in flags:
            part.training = flag
