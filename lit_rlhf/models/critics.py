"""Critics: where the values of policy optimization come from."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.loading import DTYPES
from lit_rlhf.models.specs import DTypeName, LoraSpec, ModelSpec
from lit_rlhf.tokenizers import tokenizer_fingerprint
from lit_rlhf.types import BranchedBatch


@dataclass
class RewardSource:
    """Where a trained reward model lives, for a critic to start from.

    Attributes:
        backbone: The backbone, the policy's or one of its own.
        role: The role that scores; None for the base itself.
        head: Name of its scalar head.
    """

    backbone: Backbone
    role: str | None
    head: str


class Critic(nn.Module, ABC):
    """Predicts the return from each state of a sequence; where it lives and what it starts from is its own business."""

    head_on_policy: bool = False
    """Whether values come from the policy's own pass: `backbone(batch, role="policy", values="value", ...)`."""

    @abstractmethod
    def attach(self, backbone: Backbone, reward_source: RewardSource | None) -> None:
        """Make the parameters. Called once, before optimizers and strategies see the module.

        Args:
            backbone: The policy's.
            reward_source: A trained reward model to start from, if there is one.
        """

    @abstractmethod
    def values(self, backbone: Backbone, batch: BranchedBatch, num_branches: int) -> Tensor:
        """Values (N, T) at the state before each token, float32, with gradient."""


class ValueHead(Critic):
    """A linear head on the policy's hidden states: no second model and no second pass, but one trunk for two losses.

    It starts at 0, whatever the reward model, whose head reads other states.
    """

    head_on_policy = True

    def attach(self, backbone: Backbone, reward_source: RewardSource | None) -> None:
        """Add the head `value` to the policy's backbone."""
        backbone.add_head("value")

    def values(self, backbone: Backbone, batch: BranchedBatch, num_branches: int) -> Tensor:
        """Values from a pass of the policy."""
        return _values(backbone, batch, num_branches, "policy")


class ValueAdapter(Critic):
    """An adapter `value` with a head on the policy's base: a critic with features of its own for little memory.

    Args:
        start: "reward" copies the reward adapter and its head, which must be on the same base; "fresh" starts as the
            base with a head of 0; "auto" does the former where it can.
        lora: Shape of a fresh adapter; default: that of the policy.
    """

    def __init__(
        self, start: Literal["auto", "reward", "fresh"] = "auto", lora: LoraSpec | None = None
    ) -> None:
        super().__init__()
        self.start = start
        self.lora = lora

    def attach(self, backbone: Backbone, reward_source: RewardSource | None) -> None:
        """Add adapter and head `value` to the policy's backbone.

        Raises:
            ConfigurationError: `start="reward"` without a reward adapter on the same base.
        """
        source = reward_source
        there = None if source is None or source.backbone is not backbone else source.role
        here = there in backbone.adapters
        if self.start == "reward" and not here:
            raise ConfigurationError(
                "ValueAdapter(start='reward') needs a reward model that is an adapter on the policy's base. Use "
                "start='fresh', or ValueModel, which starts from a reward model of its own."
            )
        if source is not None and here and self.start != "fresh":
            backbone.add_adapter("value", copy_from=source.role)
            backbone.add_head("value", copy_from=source.head)
        else:
            backbone.add_adapter("value", lora=self.lora)
            backbone.add_head("value")

    def values(self, backbone: Backbone, batch: BranchedBatch, num_branches: int) -> Tensor:
        """Values from a pass of the role `value`."""
        return _values(backbone, batch, num_branches, "value")


class ValueModel(Critic):
    """A model of its own, started from the reward model (arXiv:2009.01325), or from a spec with a head of 0.

    Args:
        spec: What to load where there is no trained reward model; its tokenizer must be the policy's.
        start: "reward" copies the reward model; "spec" loads `spec`; "auto" does the former where it can.
        lora: Train an adapter on the copy instead of all of its weights.
        dtype: Of the copy's weights; default: those of the reward model. Weights trained in full want "float32".
    """

    backbone: Backbone

    def __init__(
        self,
        spec: ModelSpec | None = None,
        start: Literal["auto", "reward", "spec"] = "auto",
        lora: LoraSpec | None = None,
        dtype: DTypeName | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.start = start
        self.lora = lora
        self.dtype = dtype

    def attach(self, backbone: Backbone, reward_source: RewardSource | None) -> None:
        """Build the model.

        Raises:
            ConfigurationError: There is neither a reward model nor a spec; or the vocabularies differ.
        """
        use_reward = self.start == "reward" or (self.start == "auto" and reward_source is not None)
        if use_reward and reward_source is not None:
            self.backbone = self._from_reward(reward_source)
        elif not use_reward and self.spec is not None:
            self.backbone = self._from_spec(self.spec)
        else:
            missing = "a trained reward model (as the policy's reward)" if use_reward else "spec"
            raise ConfigurationError(
                f"ValueModel(start={self.start!r}) has nothing to start from: give it {missing}."
            )
        ours, theirs = self.backbone.tokenizer, backbone.tokenizer
        if tokenizer_fingerprint(ours) != tokenizer_fingerprint(theirs):
            raise ConfigurationError(
                "The critic's tokenizer isn't the policy's, so it can't read the policy's tokens. Use ValueHead or "
                "ValueAdapter, or start ValueModel from a model with the policy's tokenizer."
            )

    def values(self, backbone: Backbone, batch: BranchedBatch, num_branches: int) -> Tensor:
        """Values from a pass of the critic's own model."""
        return _values(self.backbone, batch, num_branches, "value")

    def _from_reward(self, source: RewardSource) -> Backbone:
        theirs = source.backbone
        model = theirs.frozen_copy(self.dtype)
        model.add_head("value", copy_from=source.head)
        quantized = theirs.spec.quantization != "none"
        if source.role in theirs.adapters:
            model.add_adapter("value", copy_from=source.role)
        elif self.lora is not None or quantized:
            model.add_adapter("value", lora=self.lora)
        else:
            model.decoder.requires_grad_(True)
            model.frozen = False
        return model.train()  # type: ignore[return-value, unused-ignore]

    def _from_spec(self, spec: ModelSpec) -> Backbone:
        lora = self.lora or spec.lora
        model = Backbone.load(spec, lm_head=False, trainable=lora is None)
        if lora is not None:
            model.add_adapter("value", lora=lora)
        model.add_head("value")
        if self.dtype is not None and lora is None:
            nn.Module.to(model.model, DTYPES[self.dtype])
        return model


def _values(backbone: Backbone, batch: BranchedBatch, num_branches: int, role: str) -> Tensor:
    values = backbone(batch, num_branches=num_branches, role=role, values="value").values
    assert isinstance(values, Tensor)
    return values
