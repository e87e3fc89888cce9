"""The reference that a policy is held to: where it lives, how it moves, what a checkpoint holds of it."""

import torch

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.modules.base import RLHFModule


class ReferencedModule(RLHFModule):
    """A module whose policy is held to a reference: the initial policy, unless the callback `MovingReference` moves it.

    With LoRA the reference is the base with adapters off (or a frozen copy of the adapter that the policy starts from),
    and one that moves is a frozen adapter `reference`. In full fine-tuning it is a frozen copy of the model.
    """

    reference: Backbone
    reference_moves = False
    """Set before the model is built: the reference then has weights of its own, which checkpoints hold."""

    def add_reference(self, dtype: DTypeName | None = None) -> None:
        """Make what the reference needs; the policy must stand, untrained.

        Args:
            dtype: Of a frozen copy; default: the policy's.
        """
        if not self.backbone.has_lora:
            self.reference = self.backbone.frozen_copy(dtype)
        elif self.reference_moves and "reference" not in self.backbone.adapters:
            self.backbone.add_adapter("reference", copy_from="policy", trainable=False)

    def reference_model(self) -> tuple[Backbone, str | None]:
        """The backbone to ask, and under which role."""
        return (self.backbone, "reference") if self.backbone.has_lora else (self.reference, None)

    def require_movable_reference(self, alpha: float) -> None:
        """Refuse what can't be moved; `MovingReference` asks before the model is built.

        Raises:
            ConfigurationError: Names the option that stands in the way.
        """
        if "backbone" in self._modules and not self.reference_moves:
            raise ConfigurationError(
                f"The model of this {type(self).__name__} was built without a reference of its "
                "own. Give MovingReference "
                "to the Trainer that trains it first."
            )
        if (
            alpha < 1
            and self.spec.lora is None
            and self.spec.adapter is None
            and self.backbone.spec.dtype != "float32"
        ):
            raise ConfigurationError(
                f"MovingReference(alpha={alpha}) averages weights, and in {self.backbone.spec.dtype} small "
                "steps round away. Set "
                "backbone.dtype: float32, or alpha: 1."
            )

    @torch.no_grad()
    def move_reference(self, alpha: float) -> None:
        r"""$\theta_{ref} \leftarrow \alpha\,\theta + (1 - \alpha)\,\theta_{ref}$ over the weights that are trained.

        With LoRA these are the matrices A and B, so the reference keeps their rank; the product of the averages is not
        quite the average of the products.

        Args:
            alpha: In (0, 1]; 1 puts the policy in the reference's place.
        """
        policy = dict(self.named_parameters())
        for name, reference in policy.items():
            twin = self._twin(name)
            if twin is not None:
                reference.lerp_(policy[twin].to(reference.dtype), alpha)

    def trainable_names(self) -> list[str]:
        """Trained parameters, and the reference's where it moves."""
        moved = [
            name for name, _ in self.named_parameters() if self.reference_moves and self._twin(name)
        ]
        return [*super().trainable_names(), *moved]

    def _twin(self, name: str) -> str | None:
        """The policy's parameter that a parameter of the reference follows; None for all other parameters."""
        if name.startswith("reference."):
            return name.replace("reference.", "backbone.", 1)
        if name.startswith("backbone.") and ".lora_" in name and ".reference." in name:
            return name.replace(".reference.", ".policy.")
        return None
