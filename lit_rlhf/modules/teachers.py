"""Teachers: what a student learns to write like, in the place of the reference that a policy is held to."""

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.modules.reference import Reference

_ROLE = "teacher"


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
