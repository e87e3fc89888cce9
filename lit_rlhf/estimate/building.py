"""A module's models as shapes: no weights are read, and reward models that aren't there yet are assumed."""

import copy
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models as tokenizer_models
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from lit_rlhf.errors import ConfigurationError, LitRLHFError
from lit_rlhf.internals.transformers import without_comparison
from lit_rlhf.models import Backbone, ModelSpec, RewardSource
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.rewards import ModelReward, Reward
from lit_rlhf.tokenizers import load_tokenizer
from lit_rlhf.types import Completions, Scores

_BYTES = {"nf4": 0.5 + 4 / 64, "fp4": 0.5 + 4 / 64, "int8": 1.0}
"""Of a quantized weight, with a float32 scale for each block of 64."""


class _AssumedReward(Reward):
    """A reward model in the place of one that isn't there yet: an adapter like the policy's on its base, or a copy.

    Args:
        given: What the configuration says of it.
        spec: The policy's.
    """

    backbone: Backbone

    def __init__(self, given: ModelReward, spec: ModelSpec) -> None:
        super().__init__()
        self.path = given.path
        self.batch_tokens = given.batch_tokens
        self.shares = given.share_base is not False and spec.lora is not None
        options: dict[str, Any] = {"dtype": "float32", **given.options}
        self.spec = replace(spec, lora=None, adapter=None, **options)
        self._source: RewardSource | None = None

    def attach(self, backbone: Backbone) -> None:
        """Add an adapter and a head to the policy's base, or make a model of its own."""
        where = backbone
        if self.shares:
            backbone.add_adapter("reward", trainable=False)
        else:
            where = self.backbone = Backbone.load(self.spec, lm_head=False, trainable=False)
        where.add_head("reward", trainable=False)
        self._source = RewardSource(where, "reward", "reward")

    def source(self) -> RewardSource | None:
        """Where it lives."""
        return self._source

    def score(self, completions: Completions) -> Scores:
        """It has no weights."""
        raise NotImplementedError


class Weight(NamedTuple):
    """A weight or a buffer."""

    part: str
    """What it is for."""
    tensor: Tensor
    size: int | None
    """Its bytes where bitsandbytes would pack it."""


class Built:
    """A copy of a module with its models on the meta device.

    Args:
        module: As its constructor made it; it stays as it is.
        kind: The kind of device that it would run on.
        change: Of the policy's spec.

    Attributes:
        module: The copy.
        notes: What was assumed.
    """

    def __init__(
        self,
        module: RLHFModule,
        kind: str,
        change: Callable[[ModelSpec], ModelSpec] = lambda spec: spec,
    ) -> None:
        if "backbone" in dict(module.named_children()):
            raise ConfigurationError(
                "The module's model is loaded already. Estimate a module as its constructor makes it, before a Trainer "
                "or configure_model() has it."
            )
        self.notes: list[str] = []
        self.module = copy.deepcopy(module)
        with tempfile.TemporaryDirectory() as directory, _silent(), torch.device("meta"):
            spec = change(module.spec)
            if spec.dtype == "auto" and kind == "cuda":  # which this machine would settle by itself
                spec = replace(spec, dtype="bfloat16")
            spec = self._with_tokenizer(spec, directory)
            self.module.spec = spec
            self._assume_rewards(self.module, spec)
            self.module.configure_model()
        # Of devices too, and tensors here don't always say the same.
        without_comparison(self.module)

    def weights(self) -> Iterator[Weight]:
        """Weights and buffers of all models."""
        packed = {
            id(layer.weight): int(layer.weight.numel() * _BYTES[backbone.spec.quantization])
            for backbone in self.module.modules()
            if isinstance(backbone, Backbone) and backbone.spec.quantization != "none"
            for layer in quantized_layers(backbone)
        }
        shared = self.module.backbone.has_lora
        for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            yield Weight(f"weights: {_role(name, shared)}", tensor, packed.get(id(tensor)))

    def _with_tokenizer(self, spec: ModelSpec, directory: str) -> ModelSpec:
        """A tokenizer steers nothing here but the ids of its end: where there is none, any will do."""
        name = spec.tokenizer or spec.name
        try:
            load_tokenizer(str(name), revision=spec.revision)
        except LitRLHFError:
            made = PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer(tokenizer_models.WordLevel({"</s>": 0}, "</s>")),
                eos_token="</s>",
                pad_token="</s>",
            )
            made.save_pretrained(directory)
            self.notes.append(f"No tokenizer at {name!r}: one without words stood in for it.")
            return replace(spec, tokenizer=directory)
        return spec

    def _assume_rewards(self, parent: nn.Module, spec: ModelSpec) -> None:
        for name, child in parent.named_children():
            if isinstance(child, ModelReward) and not _is_there(child.path):
                assumed = _AssumedReward(child, spec)
                setattr(parent, name, assumed)
                own = "a model of its size"
                what = "an adapter on the policy's base" if assumed.shares else own
                self.notes.append(f"No reward model at {child.path!r} yet: taken for {what}.")
            elif isinstance(child, nn.Module):
                self._assume_rewards(child, spec)


def quantized_layers(backbone: Backbone) -> list[nn.Linear]:
    """The layers that bitsandbytes packs: every linear one but the LM head and adapters."""
    head = backbone.model.get_output_embeddings()
    return [
        part
        for name, part in backbone.model.named_modules()
        if isinstance(part, nn.Linear)
        and part is not head
        and ".lora_" not in name
        and not hasattr(part, "base_layer")
    ]


def _role(name: str, shared: bool) -> str:
    """Whose a parameter is, by its name in the module."""
    if name.startswith("reference."):
        return "reference"
    if name.startswith(("value.", "critic.")):
        return "value model"
    if name.startswith("reward."):
        return "reward model"
    if ".lora_" in name:
        return f"adapter {name.split('.weight', maxsplit=1)[0].rsplit('.', 1)[-1]}"
    if ".heads." in name:
        return "heads"
    return "shared base" if shared else "policy"


def _is_there(path: str) -> bool:
    if Path(path).exists():
        return True
    try:
        load_tokenizer(path)
    except LitRLHFError:
        return False
    return True


@contextmanager
def _silent() -> Iterator[None]:
    """Without warnings of a machine that the work isn't for."""
    log = logging.getLogger("lit_rlhf")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
