"""From what was trained, a checkpoint of this library's modules or a policy of anybody's, to a backbone."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.models.adapters import read_adapter
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.cards import RECORD, read_record, recorded_prompts
from lit_rlhf.models.specs import DTypeOption, LoraSpec, ModelSpec
from lit_rlhf.types import GATE

_PREFIX = "backbone."
_ADAPTER = re.compile(r"\.lora_A\.(\w+)\.weight$")


def load_checkpoint_backbone(path: str | Path, **overrides: Any) -> Backbone:
    """Rebuild the backbone of a checkpoint: base from its spec, adapters and heads as trained; frozen, in eval mode.

    Args:
        path: A `.ckpt` file that one of this library's modules wrote.
        **overrides: Fields of `ModelSpec` to change, such as `dtype` or `name` (where the base has moved).

    Raises:
        CheckpointError: The file is torn, not of this library, or incomplete.
        ConfigurationError: The base can't be loaded.
    """
    checkpoint = read_checkpoint(path)
    spec = _spec(checkpoint, path)
    state = {
        k.removeprefix(_PREFIX): v
        for k, v in checkpoint["state_dict"].items()
        if k.startswith(_PREFIX)
    }
    roles = sorted({match[1] for key in state if (match := _ADAPTER.search(key))})
    heads = sorted(key.split(".")[1] for key in state if key.startswith("heads."))
    parts = checkpoint["lit_rlhf"]["state"].get("reward_parts", {})
    rewards = [
        name for name in heads if name in ("reward", *parts) or name.startswith((GATE, "member_"))
    ]
    spec = replace(spec, **overrides)
    try:
        lm_head = "policy" in roles or not rewards
        backbone = Backbone.load(spec, lm_head=lm_head, trainable=False)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"The base of the checkpoint {str(path)!r}: {error} A relative path is sought where the command is called, "
            "and was written where the run was started: call it there."
        ) from error
    for role in roles:
        if role not in backbone.adapters:  # "policy" may have brought "reference"
            backbone.add_adapter(role, trainable=False)
    for head in heads:
        if head not in backbone.heads:
            backbone.add_head(head, trainable=False)
    _load(backbone, state, path)
    if parts:
        weights = [
            part * backbone.heads[name].get_parameter("weight") for name, part in parts.items()
        ]
        backbone.add_head("reward", state={"weight": torch.stack(weights).sum(0)}, trainable=False)
    backbone.prompts = recorded_prompts(checkpoint["lit_rlhf"])
    ours = checkpoint["lit_rlhf"]["state"]
    backbone.score_mean, backbone.score_std = (
        float(ours.get("score_mean", 0.0)),
        float(ours.get("score_std", 1.0)),
    )
    backbone.reward_note = str(ours.get("exported") or "")
    return backbone.eval()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True`, on the CPU.

    Raises:
        CheckpointError: No such file, a torn one, or one of something else than this library.
    """
    if not Path(path).is_file():
        hint = " It is an export already." if (Path(path) / RECORD).is_file() else ""
        raise CheckpointError(f"There is no checkpoint file {str(path)!r}.{hint}")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of several kinds for torn files
        raise CheckpointError(
            f"The checkpoint {str(path)!r} can't be read; it may be torn: {error}"
        ) from error
    if "lit_rlhf" not in checkpoint or "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{str(path)!r} is no checkpoint of lit_rlhf (it holds {sorted(checkpoint)[:8]})."
        )
    return checkpoint


def _spec(checkpoint: Mapping[str, Any], path: str | Path) -> ModelSpec:
    fields = dict(checkpoint.get("hyper_parameters", {}).get("backbone") or {})
    if not fields:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} doesn't say what its backbone was (hyper_parameters.backbone)."
        )
    if fields.get("lora"):
        fields["lora"] = LoraSpec(**fields["lora"])
    return ModelSpec(**fields)


def _load(backbone: Backbone, state: Mapping[str, Tensor], path: str | Path) -> None:
    found = backbone.load_state_dict(dict(state), strict=False)
    trained = {
        name
        for name, _ in backbone.named_parameters()
        if ".lora_" in name or name.startswith("heads.")
    }
    missing = sorted(trained & set(found.missing_keys))
    if missing or found.unexpected_keys:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} doesn't fit the backbone it names: missing {missing[:3]}, unexpected "
            f"{found.unexpected_keys[:3]}. Is the base the one it was trained on?"
        )


def load_policy(path: str, *, dtype: DTypeOption = "float32") -> Backbone:
    """Load a policy as a frozen backbone whose role "policy" speaks.

    Args:
        path: A causal language model (directory or hub id), an export of this library, a peft adapter, or a checkpoint
            (.ckpt).
        dtype: Of the base's weights, as in `ModelSpec`.

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
