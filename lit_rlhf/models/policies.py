"""Trained policies, ours and those of others, as backbones to sample from."""

from pathlib import Path

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models.adapters import read_adapter
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.cards import read_record, recorded_prompts
from lit_rlhf.models.checkpoints import load_checkpoint_backbone
from lit_rlhf.models.specs import DTypeName, LoraSpec, ModelSpec


def load_policy(path: str, *, dtype: DTypeName = "float32") -> Backbone:
    """Load a policy as a frozen backbone whose role "policy" speaks.

    Args:
        path: A causal language model (directory or hub id), an export of this library, a peft adapter, or a checkpoint
            (.ckpt).
        dtype: Of the weights.

    Raises:
        ConfigurationError: There is no such model, or it is a reward model.
        CheckpointError: Files are torn or incomplete.
    """
    if path.endswith(".ckpt"):
        backbone = load_checkpoint_backbone(path, dtype=dtype)
        if not backbone.has_lm_head:
            raise _not_a_policy(path)
        return backbone
    record = read_record(Path(path))
    if record.get("kind") == "reward":
        raise _not_a_policy(path)
    if not (Path(path) / "adapter_config.json").is_file():
        return Backbone.load(ModelSpec(name=path, dtype=dtype), trainable=False).eval()
    base = read_adapter(path)[0].base_model_name_or_path
    spec = ModelSpec(name=base, tokenizer=path, dtype=dtype, lora=LoraSpec())
    backbone = Backbone.load(spec, trainable=False)
    backbone.add_adapter("policy", path=path, trainable=False)
    backbone.prompts = recorded_prompts(record)
    return backbone.eval()


def _not_a_policy(path: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path!r} is a reward model: it scores answers and writes none. Give a policy, and this one as --reward."
    )
