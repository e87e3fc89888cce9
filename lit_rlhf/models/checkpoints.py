"""From what was trained, this library's checkpoints, policies and reward models of anybody's, to a backbone."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.models.adapters import read_adapter
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.cards import RECORD, read_record, recorded_prompts
from lit_rlhf.models.loading import pretrained
from lit_rlhf.models.specs import (
    Attention,
    Branching,
    DTypeOption,
    LoraSpec,
    ModelSpec,
    Quantization,
)
from lit_rlhf.tokenizers import from_hub, load_tokenizer, require_directory
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
    fields = spec_fields(checkpoint, path)
    if fields.get("lora"):
        fields["lora"] = LoraSpec(**fields["lora"])
    own = [item for item in checkpoint["state_dict"].items() if item[0].startswith(_PREFIX)]
    state = {key.removeprefix(_PREFIX): value for key, value in own}
    roles = sorted({match[1] for key in state if (match := _ADAPTER.search(key))})
    heads = sorted(key.split(".")[1] for key in state if key.startswith("heads."))
    ours = checkpoint["lit_rlhf"]["state"]
    parts = ours.get("reward_parts", {})
    scores = any(name in ("reward", *parts) or name.startswith((GATE, "member_")) for name in heads)
    spec = replace(ModelSpec(**fields), **overrides)
    try:
        lm_head = "policy" in roles or not scores
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
        weights = [p * backbone.heads[name].get_parameter("weight") for name, p in parts.items()]
        backbone.add_head("reward", state={"weight": torch.stack(weights).sum(0)}, trainable=False)
    backbone.prompts = recorded_prompts(checkpoint["lit_rlhf"])
    backbone.score_mean = float(ours.get("score_mean", 0.0))
    backbone.score_std = float(ours.get("score_std", 1.0))
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


def spec_fields(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of its backbone's spec, by field.

    Raises:
        CheckpointError: Nothing.
    """
    fields = checkpoint.get("hyper_parameters", {}).get("backbone")
    if not fields or not isinstance(fields, Mapping):
        raise CheckpointError(
            f"The checkpoint {str(path)!r} doesn't say what its backbone was (hyper_parameters.backbone)."
        )
    return dict(fields)


def _load(backbone: Backbone, state: Mapping[str, Tensor], path: str | Path) -> None:
    found = backbone.load_state_dict(dict(state), strict=False)
    lacking = set(found.missing_keys) & {name for name, _ in backbone.named_parameters()}
    missing = sorted(n for n in lacking if ".lora_" in n or n.startswith("heads."))
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


def load_reward_model(
    path: str | Path,
    *,
    dtype: DTypeOption = "float32",
    quantization: Quantization = "none",
    attention: Attention = "sdpa",
    branching: Branching = "auto",
    base: str | None = None,
    trust_remote_code: bool = False,
) -> Backbone:
    """Load a reward model as a frozen backbone with the head "reward".

    Scores equal those that transformers gives: for a model of others whose pad token also ends texts, the score is read
    before that token, as its training did.

    Args:
        path: An export of this library (whole or adapter), or a sequence classifier of one label: directory or hub id.
        dtype: Of the weights.
        quantization: Of the linear layers.
        attention: Kernel.
        branching: See `ModelSpec`.
        base: Base of an adapter, if it is no longer where the adapter says.
        trust_remote_code: Run code that comes with the model.

    Returns:
        A backbone to be asked with `role="reward", scores="reward"`; `score_mean` and `score_std` as recorded, else 0
        and 1.

    Raises:
        ConfigurationError: No such directory; not a classifier of one label; not a causal decoder.
        CheckpointError: Files are missing or torn.
    """
    require_directory(str(path), "reward model")
    spec = ModelSpec(
        name=str(path),
        tokenizer=str(path),
        dtype=dtype,
        quantization=quantization,
        attention=attention,
        branching=branching,
        trust_remote_code=trust_remote_code,
    )
    is_adapter = (Path(path) / "adapter_config.json").is_file()
    backbone = _from_adapter(spec, base) if is_adapter else _from_classifier(spec)
    record = read_record(Path(path))
    backbone.score_mean = float(str(record.get("score_mean", 0.0)))
    backbone.score_std = float(str(record.get("score_std", 1.0)))
    backbone.prompts = recorded_prompts(record)
    return backbone.eval()


def _from_adapter(spec: ModelSpec, base: str | None) -> Backbone:
    path = str(spec.name)
    config, _ = read_adapter(path)
    base = base or config.base_model_name_or_path
    if not base:
        raise CheckpointError(
            f"The adapter {path!r} doesn't say which base it belongs to. Pass base=<directory or hub id>."
        )
    backbone = Backbone.load(replace(spec, name=base), lm_head=False, trainable=False)
    backbone.add_adapter("reward", path=path, trainable=False)
    if "reward" not in backbone.heads:
        raise CheckpointError(
            f"The adapter {path!r} has no scalar head (score.weight): it is no reward model."
        )
    return backbone


def _from_classifier(spec: ModelSpec) -> Backbone:
    name = str(spec.name)
    config: PretrainedConfig = from_hub(
        lambda: AutoConfig.from_pretrained(name, trust_remote_code=spec.trust_remote_code),
        name,
        "model",
    )
    classes = config.architectures or []
    if not any(item.endswith("ForSequenceClassification") for item in classes):
        raise ConfigurationError(
            f"{name!r} is no reward model: its config names {classes}, not a ...ForSequenceClassification. Export one "
            "with `lit-rlhf export`, or train one with RewardModelModule."
        )
    if config.num_labels != 1:
        raise ConfigurationError(
            f"{name!r} classifies into {config.num_labels} labels; a reward model has 1."
        )
    model = pretrained(AutoModelForSequenceClassification, name, spec, config)
    head: object = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
        raise ConfigurationError(
            f"{type(model).__name__} isn't a causal decoder with a linear `score` head. Score with it through a "
            "callable reward."
        )
    trunk = cast("PreTrainedModel", model.base_model)
    tokenizer = load_tokenizer(name, trust_remote_code=spec.trust_remote_code)
    backbone = Backbone(trunk, tokenizer, spec, lm_head=False, trainable=False)
    backbone.add_head("reward", state={"weight": head.weight.detach()}, trainable=False)
    pad = config.get_text_config().pad_token_id
    if pad is not None:
        backbone.score_skip_ids["reward"] = pad
    return backbone


def _not_a_policy(path: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path!r} is a reward model: it scores answers and writes none. Give a policy, and this one as --reward."
    )
