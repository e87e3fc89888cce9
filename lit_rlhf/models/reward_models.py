"""Trained reward models, ours and those of others, as backbones."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.models.adapters import read_adapter
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.cards import read_record, recorded_prompts
from lit_rlhf.models.loading import pretrained
from lit_rlhf.models.specs import Attention, Branching, DTypeOption, ModelSpec, Quantization
from lit_rlhf.tokenizers import from_hub, load_tokenizer, require_directory


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
