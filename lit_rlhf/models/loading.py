"""From a `ModelSpec` to a transformers decoder: weights, dtype, quantization, attention; dropout off."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from lit_rlhf.errors import CheckpointError, ConfigurationError, near
from lit_rlhf.internals.bitsandbytes import keep_trainable
from lit_rlhf.internals.transformers import ONE_AT_A_TIME, drawn_once, recompute
from lit_rlhf.models.precision import resolve_dtype
from lit_rlhf.models.specs import ModelSpec
from lit_rlhf.seeding import stable_hash
from lit_rlhf.tokenizers import from_hub, load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Contexts = Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]
"""Called at each layer's forward: contexts for the forward and for the recomputation."""


def dtype_of(spec: ModelSpec) -> torch.dtype:
    """The dtype that a spec's weights are loaded in."""
    return DTYPES[resolve_dtype(spec.dtype)]


def load_model(
    spec: ModelSpec, *, lm_head: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load or initialise a decoder and its tokenizer as the spec says.

    Args:
        spec: What to load.
        lm_head: Load a causal language model; else the trunk alone, which `logits` can't be asked of.

    Returns:
        The model as transformers gives it, and the tokenizer.

    Raises:
        ConfigurationError: Neither or both of `name` and `config`; no tokenizer; a directory that doesn't exist; a
            model type that transformers doesn't know; a vocabulary smaller than the tokenizer's.
        CheckpointError: Weights are missing in the files.
    """
    tokenizer = _tokenizer(spec)
    config = _config(spec, tokenizer)
    model = (
        _initialised(spec, config, lm_head)
        if spec.name is None
        else pretrained(AutoModelForCausalLM if lm_head else AutoModel, spec.name, spec, config)
    )
    rows, tokens = len(embeddings(model)), len(tokenizer)
    if tokens > rows:
        raise ConfigurationError(
            f"The tokenizer {spec.tokenizer or spec.name!r} has {tokens} tokens, but the model embeds only {rows}. Use "
            "the model's own tokenizer, or resize its embeddings and save it anew."
        )
    return model, tokenizer


def refuse_missing(spec: ModelSpec) -> None:
    """Refuse a model that isn't there: asked before data are prepared, which may take long.

    Raises:
        ConfigurationError: There is no such directory and nothing of that name on the hub, or it holds no model.
    """
    if spec.name is not None and not Path(spec.name, "config.json").is_file():
        _config_of(spec.name, spec)


def refuse_unmeetable(spec: ModelSpec, *, trainable: bool) -> None:
    """Refuse combinations of options that can't train.

    Raises:
        ConfigurationError: Quantized weights without an adapter to train.
    """
    if spec.quantization != "none" and spec.lora is None and spec.adapter is None and trainable:
        raise ConfigurationError(
            f"quantization={spec.quantization!r} without lora: quantized weights can't be trained. Add "
            "lora: {rank: 16}, or set quantization: none."
        )


def embeddings(model: PreTrainedModel) -> Tensor:
    """The input embeddings, (V, h)."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def prepare_modules(model: PreTrainedModel) -> None:
    """Switch dropout off and keep 4-bit layers trainable on CPU.

    A policy's ratio to itself must be 1, and a score depend on the text: every rate of the config, of dropout modules
    and of layers that hold one as a number becomes 0.
    """
    config = model.config
    for part in (config, config.get_text_config(), *model.modules()):
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and ("dropout" in name or name.endswith("_pdrop")):
                setattr(part, name, 0.0)
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, nn.Module):
            keep_trainable(part)


def quantization_config(spec: ModelSpec) -> BitsAndBytesConfig | None:
    """What transformers needs to quantize at loading."""
    if spec.quantization == "none":
        return None
    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    on_gpu = torch.get_default_device().type == "cuda"
    fast = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.quantization,
        bnb_4bit_compute_dtype=torch.bfloat16 if fast else dtype_of(spec),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' load reports and progress bars, which say what we check ourselves, off the terminal.

    For one thread at a time: what is switched off is the whole process's.
    """
    with ONE_AT_A_TIME:
        level = transformers_logging.get_verbosity()
        bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(level)
            if bars:
                transformers_logging.enable_progress_bar()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for code of others that draws from them, and put them back."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    if (spec.name is None) == (spec.config is None):
        given = "both" if spec.name is not None else "neither"
        raise ConfigurationError(
            f"A model needs either `name` (directory or hub id) or `config` (random initialisation); {given} is given."
        )
    name = spec.tokenizer or spec.name
    if name is None:
        raise ConfigurationError(
            "A model from `config` has no tokenizer of its own: set `tokenizer` to a directory or hub id of one."
        )
    revision = spec.revision if spec.tokenizer is None else None
    return load_tokenizer(name, revision=revision, trust_remote_code=spec.trust_remote_code)


def _config(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    if spec.name is not None:
        return _config_of(spec.name, spec)
    return _config_from_options(dict(spec.config or {}), tokenizer)


def _config_of(name: str, spec: ModelSpec) -> PretrainedConfig:
    config: PretrainedConfig = from_hub(
        lambda: AutoConfig.from_pretrained(
            name, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        ),
        name,
        "model",
    )
    return config


def _config_from_options(
    options: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> PretrainedConfig:
    model_type = options.pop("model_type", None)
    try:
        defaults = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise ConfigurationError(
            f"config.model_type={model_type!r} is no model that transformers knows. Give one like 'llama' or 'qwen3'."
        ) from error
    known = set(vars(defaults)) | set(getattr(defaults, "attribute_map", {}))
    for key in options:
        if key not in known and not hasattr(defaults, key):
            raise ConfigurationError(
                f"config.{key} is no option of the model type {model_type!r}.{near(key, known, most=1, form=repr)}"
            )
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    ids = {name: getattr(tokenizer, name) for name in names}
    try:
        return AutoConfig.for_model(model_type, **{"vocab_size": len(tokenizer), **ids, **options})
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConfigurationError(
            f"Can't build a model of config {options}: {' '.join(str(error).split())}"
        ) from error


def pretrained(
    auto_class: Any, name: str, spec: ModelSpec, config: PretrainedConfig
) -> PreTrainedModel:
    """`from_pretrained` of an auto class, with the spec's dtype, quantization and attention.

    On the meta device nothing has numbers, so no weights are read, and none are quantized.
    """
    if torch.get_default_device().type == "meta":
        return _from_config(auto_class, spec, config)
    with quiet():
        model: PreTrainedModel
        model, report = from_hub(
            lambda: auto_class.from_pretrained(
                name,
                output_loading_info=True,
                config=config,
                revision=spec.revision if name == spec.name else None,
                dtype=dtype_of(spec),
                quantization_config=quantization_config(spec),
                attn_implementation=attention_to_load(config, spec.attention),
                trust_remote_code=spec.trust_remote_code,
            ),
            name,
            "model",
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"The weights of {name!r} are incomplete: {len(missing)} tensors are missing (first: {missing[:3]}), which "
            "transformers would fill with random numbers. Was it saved as another kind of model than "
            f"{type(model).__name__}?"
        )
    return model


def attention_to_load(config: PretrainedConfig, attention: str) -> str:
    """Models that cap the scores (Gemma 2) are refused SDPA by transformers, whose function can't."""
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return "eager" if attention == "sdpa" and capped else attention


def _initialised(spec: ModelSpec, config: PretrainedConfig, lm_head: bool) -> PreTrainedModel:
    auto_class: Any = AutoModelForCausalLM if lm_head else AutoModel
    device = torch.get_default_device()
    # Drawn on CPU, for a GPU's generator gives other numbers; the meta device has none to draw.
    draw = device if device.type == "meta" else torch.device("cpu")
    with ONE_AT_A_TIME, seeded(stable_hash(spec.init_seed, "model")):
        try:
            model = drawn_once(partial(_from_config, auto_class, spec, config), draw)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(
                f"Can't build a model of config {spec.config}: {error}"
            ) from error
    if spec.quantization == "none" or device.type == "meta":
        model.to(device)  # type: ignore[arg-type]  # transformers wraps it, and mypy loses `self`
        return model
    # bitsandbytes quantizes as weights are loaded, so they make a detour over the disk.
    with tempfile.TemporaryDirectory() as directory:
        with quiet():
            model.save_pretrained(directory)
        return pretrained(auto_class, directory, spec, config)


def _from_config(auto_class: Any, spec: ModelSpec, config: PretrainedConfig) -> PreTrainedModel:
    with ONE_AT_A_TIME:
        model: PreTrainedModel = auto_class.from_config(
            config,
            dtype=dtype_of(spec),
            attn_implementation=attention_to_load(config, spec.attention),
        )
    return model


def recompute_layers(decoder: nn.Module, contexts: Contexts, *, draws: bool) -> None:
    """Store each layer's input alone in training mode, and compute the layer again in backward.

    Args:
        decoder: The trunk.
        contexts: What the two passes run under.
        draws: Whether layers draw random numbers (dropout), which then must be the same in both passes.

    Raises:
        ConfigurationError: The architecture has no layers that can be recomputed.
    """
    kind = GradientCheckpointingLayer
    layers = [module for module in decoder.modules() if isinstance(module, kind)]
    if not layers:
        raise ConfigurationError(
            f"gradient_checkpointing: {type(decoder).__name__} has no layers that can be recomputed. Set it to false."
        )
    run = partial(checkpoint, use_reentrant=False, preserve_rng_state=draws, context_fn=contexts)
    for layer in layers:
        recompute(layer, run)
