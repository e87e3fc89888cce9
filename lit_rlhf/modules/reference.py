"""The reference that a policy is held to: where it lives, how it moves, what a checkpoint holds of it."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.modules.forwards import rollout_logprobs
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import Rollout


class Reference(nn.Module):
    """What a policy is held to: the initial policy, unless the callback `MovingReference` moves it.

    With LoRA the reference is the base with adapters off (or a frozen copy of the adapter that the policy starts from),
    and one that moves is a frozen adapter `reference`. In full fine-tuning it is a frozen copy of the model.

    Attributes:
        moves: Set before the model is built: the reference then has weights of its own, which checkpoints hold.
        model: The frozen copy, where there is one.
    """

    model: Backbone

    def __init__(self) -> None:
        super().__init__()
        self.moves = False

    def attach(self, policy: Backbone, dtype: DTypeName | None = None) -> None:
        """Make what the reference needs; the policy must stand, untrained.

        Args:
            policy: Its backbone.
            dtype: Of a frozen copy; default: the policy's.
        """
        if not policy.has_lora:
            self.model = policy.frozen_copy(dtype)
        elif self.moves and "reference" not in policy.adapters:
            policy.add_adapter("reference", copy_from="policy", trainable=False)

    def beside(self, policy: Backbone) -> tuple[Backbone, str | None]:
        """The backbone to ask, and under which role."""
        return (policy, "reference") if policy.has_lora else (self.model, None)

    def logprobs(
        self, policy: Backbone, rollout: Rollout, temperature: float, budget: int
    ) -> Tensor:
        """(N, T): of a rollout's tokens, without gradient.

        Args:
            policy: Its backbone.
            rollout: This process's.
            temperature: Of the sampling.
            budget: Padded tokens of one forward.
        """
        return rollout_logprobs(*self.beside(policy), temperature, rollout, budget)

    def require_model(self, user: object) -> None:
        """Refuse to serve a module that needs more than `logprobs`; a model refuses none."""

    def require_sampling(self, sampling: Sampling) -> None:
        """Refuse a distribution of which it can't tell log-probs; a model refuses none."""

    def require_movable(self, spec: ModelSpec, alpha: float, *, built: bool) -> None:
        """Refuse what can't be moved.

        Args:
            spec: The policy's.
            alpha: How far it is to be moved.
            built: Whether the policy's model stands already.

        Raises:
            ConfigurationError: Names the option that stands in the way.
        """
        if built and not self.moves:
            raise ConfigurationError(
                "The model was built without a reference of its own. Give MovingReference to the "
                "Trainer that trains it "
                "first."
            )
        if alpha < 1 and spec.lora is None and spec.adapter is None and spec.dtype != "float32":
            raise ConfigurationError(
                f"MovingReference(alpha={alpha}) averages weights, and in {spec.dtype} small steps round away. Set "
                "backbone.dtype: float32, or alpha: 1."
            )

    @torch.no_grad()
    def move(self, parameters: Mapping[str, nn.Parameter], alpha: float) -> None:
        r"""$\theta_{ref} \leftarrow \alpha\,\theta + (1 - \alpha)\,\theta_{ref}$ over the weights that are trained.

        With LoRA these are the matrices A and B, so the reference keeps their rank; the product of the averages is not
        quite the average of the products.

        Args:
            parameters: The module's, by name.
            alpha: In (0, 1]; 1 puts the policy in the reference's place.
        """
        for name in self.names(parameters):
            reference, twin = parameters[name], parameters[_twin(name) or name]
            reference.lerp_(twin.to(reference.dtype), alpha)

    def names(self, parameters: Iterable[str]) -> list[str]:
        """Names of the reference's own parameters among a module's, where it moves."""
        return [name for name in parameters if self.moves and _twin(name) is not None]


def _twin(name: str) -> str | None:
    """The policy's parameter that a parameter of the reference follows; None for all other parameters."""
    if name.startswith("reference.model."):
        return name.replace("reference.model.", "backbone.", 1)
    if name.startswith("backbone.") and ".lora_" in name and ".reference." in name:
        return name.replace(".reference.", ".policy.")
    return None
