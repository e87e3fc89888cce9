"""The reference that a policy is held to: where it lives, how it moves, what a checkpoint holds of it."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.modules.minibatches import rollout_logprobs
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import Rollout

_ROLE = "teacher"


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
                "The model was built without a reference of its own. Give MovingReference to the Trainer that trains "
                "it first."
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


class Teacher(Reference):
    """A reference that is not the initial policy, and never moves."""

    def require_movable(self, spec: ModelSpec, alpha: float, *, built: bool) -> None:
        """Refuse to be moved.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(
            f"MovingReference(alpha={alpha}) moves the initial policy that a policy is held to, and here that is a "
            f"{type(self).__name__}, which stays as it is. Leave the callback out."
        )


class TeacherModel(Teacher):
    """Another model, frozen, that reads the student's token ids: of any size or architecture.

    Checkpoints and exports of the student hold nothing of it. Rows of its LM head beyond the student's, which belong to
    no token (models of one family pad their vocabularies to different widths), are left out of its distributions.

    Args:
        backbone: The model, with its `adapter` if it has one; `quantization: nf4` takes the least memory.

    Raises:
        ConfigurationError: It is told to train (`lora`).
    """

    def __init__(self, backbone: ModelSpec) -> None:
        super().__init__()
        if backbone.lora is not None:
            raise ConfigurationError(
                f"TeacherModel.backbone has lora={backbone.lora}, adapters to be trained, and a teacher is frozen. "
                "Leave lora out; an adapter that was trained is named by `adapter`."
            )
        self.spec = backbone

    def attach(self, policy: Backbone, dtype: DTypeName | None = None) -> None:
        """Load it, and compare the vocabularies.

        Raises:
            ConfigurationError: The token ids mean other words to it.
        """
        self.model = Backbone.load(self.spec, trainable=False).to(policy.device).eval()
        require_same_ids(policy, self.model, self.spec.name)
        if self.spec.adapter is not None:
            self.model.add_adapter(_ROLE, path=self.spec.adapter, trainable=False)

    def beside(self, policy: Backbone) -> tuple[Backbone, str | None]:
        """Itself, and its adapter's role where it has one."""
        return self.model, None if self.spec.adapter is None else _ROLE


class TeacherAdapter(Teacher):
    """A trained LoRA adapter on the student's own base: student and teacher take the memory of one model.

    Args:
        path: Directory of the adapter, as peft or `lit-rlhf export` writes it.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def attach(self, policy: Backbone, dtype: DTypeName | None = None) -> None:
        """Put it on the student's base.

        Raises:
            ConfigurationError: The student trains that base in full.
            CheckpointError: The adapter doesn't fit it.
        """
        policy.add_adapter(_ROLE, path=self.path, trainable=False)

    def beside(self, policy: Backbone) -> tuple[Backbone, str | None]:
        """The student's backbone, under the teacher's role."""
        return policy, _ROLE


def require_same_ids(student: Backbone, teacher: Backbone, name: str | None) -> None:
    """Refuse a teacher to whom the student's token ids mean other words.

    Raises:
        ConfigurationError: Says which token differs, or which LM head is too narrow.
    """
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    other = next((token for token, i in ours.items() if theirs.get(token) != i), None)
    if other is not None:
        raise ConfigurationError(
            f"The teacher {name!r} has another vocabulary than the student: {other!r} is token {ours[other]} of the "
            f"student and {theirs.get(other, 'no token')} of the teacher, and distributions are compared token by "
            "token. Choose a teacher of the student's family, or learn from its texts by SFT (lit-rlhf generate)."
        )
    widths = [model.vocabulary_size for model in (student, teacher)]
    if widths[1] < widths[0]:
        raise ConfigurationError(
            f"The LM head of the teacher {name!r} has {widths[1]} rows, fewer than the student's {widths[0]}: it says "
            "nothing of the student's last ids. Choose a teacher whose head is as wide."
        )
