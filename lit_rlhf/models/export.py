"""Exports that other tools load: sequence classifiers, causal language models, peft adapters."""

import copy
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt, Params4bit
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.files import whole_directory
from lit_rlhf.internals.bitsandbytes import float_weight
from lit_rlhf.internals.torch import state_tensors
from lit_rlhf.internals.transformers import as_in_files, set_attention
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.cards import RECORD, ExportRecord, Temperature
from lit_rlhf.models.loading import dtype_of, embeddings, quiet
from lit_rlhf.models.readback import check_export
from lit_rlhf.tokenizers import tokenizer_fingerprint

_PAD = "<|pad|>"  # given to tokenizers that have no token which never ends a text


def export_reward(
    backbone: Backbone,
    path: str | Path,
    *,
    merge: bool,
    score_mean: float = 0.0,
    score_std: float = 1.0,
    role: str | None = "reward",
    head: str = "reward",
    weight: Tensor | None = None,
    note: str = "",
    temperature: Temperature | None = None,
) -> None:
    """Write a reward model: an `AutoModelForSequenceClassification`, or a peft adapter with its head.

    transformers reads the score at the last token that isn't the pad token. The export's pad token is therefore one
    that never ends a text; where the tokenizer has none (pad equals EOS), one is chosen or added.

    Args:
        backbone: What was trained.
        path: Directory to write; an earlier export there is replaced, once the new one is complete.
        merge: Merge the adapter into the weights (a quantized base into a dequantized copy). Without, an adapter is
            written as such; a model without adapter is always written whole.
        score_mean: Mean of the scores on held-out data, recorded for normalisation.
        score_std: Their standard deviation.
        role: Whose adapter scores.
        head: Name of the scalar head.
        weight: (h,) to export in its place: what several heads come to.
        note: What was exported, for the model card.
        temperature: The head, mean and deviation are divided by it, so whatever reads the export gives probabilities
            as the sigmoid of a difference of scores.

    Before the export appears it is read back by transformers or peft, and a score compared (`readback`).

    Raises:
        ConfigurationError: There is no such head, or the architecture has no sequence classifier in transformers.
        CheckpointError: The path holds something that isn't an export, the disk is full, or what was written reads
            back otherwise.
    """
    if head not in backbone.heads:
        raise ConfigurationError(
            f"There is no head {head!r} to export; there are {sorted(backbone.heads)}."
        )
    chosen = backbone.heads[head].get_parameter("weight") if weight is None else weight
    divisor = 1.0 if temperature is None else temperature.value
    row = chosen.detach().cpu()[None] / divisor
    as_adapter = not merge and role in backbone.adapters
    tokenizer = copy.deepcopy(backbone.tokenizer)
    rows = embeddings(backbone.model).shape[0]
    pad = _never_last(tokenizer, set(backbone.eos_token_ids), rows, may_grow=not as_adapter)
    with _export_directory(path, _size(backbone, role, as_adapter)) as directory:
        if as_adapter:
            base = place_of(backbone.spec.name)
            backbone.save_adapter(str(role), directory, base=base, task="SEQ_CLS", head=row)
        else:
            config = _float_config(backbone, num_labels=1, pad_token_id=pad)
            config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
            auto = AutoModelForSequenceClassification
            _save_whole(auto, config, backbone, role, directory, {"score.weight": row})
        tokenizer.save_pretrained(directory)
        record = _record(backbone, "reward", as_adapter, tokenizer)
        mean, std = score_mean / divisor, score_std / divisor
        record = replace(record, score_mean=mean, score_std=std, note=note)
        if temperature is not None:
            on, pairs = temperature.data, temperature.pairs
            record = replace(record, temperature=divisor, fitted_on=on, fitted_pairs=pairs)
        record.write(directory)
        check_export(directory, backbone, role, as_adapter=as_adapter, head=row)


def export_policy(
    backbone: Backbone,
    path: str | Path,
    *,
    merge: bool,
    role: str | None = "policy",
    read_back: bool = True,
) -> None:
    """Write a policy: an `AutoModelForCausalLM`, or a peft adapter.

    Args:
        backbone: What was trained.
        path: Directory to write; an earlier export there is replaced, once the new one is complete.
        merge: As in `export_reward`.
        role: Whose adapter.
        read_back: Before the export appears, have transformers or peft read it, and compare log-probs (`readback`); for
            who compares them elsewhere it is time lost.

    Raises:
        CheckpointError: The path holds something that isn't an export, the disk is full, or what was written reads
            back otherwise.
    """
    as_adapter = not merge and role in backbone.adapters
    with _export_directory(path, _size(backbone, role, as_adapter)) as directory:
        if as_adapter:
            base = place_of(backbone.spec.name)
            backbone.save_adapter(str(role), directory, base=base, task="CAUSAL_LM")
        else:
            config = _float_config(backbone)
            _save_whole(AutoModelForCausalLM, config, backbone, role, directory, {})
        backbone.tokenizer.save_pretrained(directory)
        _record(backbone, "policy", as_adapter, backbone.tokenizer).write(directory)
        if read_back:
            check_export(directory, backbone, role, as_adapter=as_adapter)


def policy_weights(backbone: Backbone, role: str | None) -> dict[str, Tensor]:
    """What `export_policy` would write of a whole model, by the names in its files, on the backbone's device."""
    config = _float_config(backbone)
    shell, state = _whole(AutoModelForCausalLM, config, backbone, role, {}, backbone.device)
    return as_in_files(shell, state)


def _size(backbone: Backbone, role: str | None, as_adapter: bool) -> int:
    """Bytes of the weights that will be written."""
    if as_adapter:
        own = [p for name, p in backbone.named_parameters() if f".{role}." in name]
        return sum(p.numel() * p.element_size() for p in own)
    base = [p for name, p in backbone.model.named_parameters() if ".lora_" not in name]
    shapes = [p.quant_state.shape if isinstance(p, Params4bit) else p.shape for p in base]
    count = sum(shape.numel() for shape in shapes)
    return count * dtype_of(backbone.spec).itemsize


def _save_whole(
    auto_class: Any,
    config: PretrainedConfig,
    backbone: Backbone,
    role: str | None,
    directory: Path,
    extra: dict[str, Tensor],
) -> None:
    shell, state = _whole(auto_class, config, backbone, role, extra)
    theirs = getattr(backbone.model, "generation_config", None)
    if theirs is not None and shell.can_generate():
        shell.generation_config = copy.deepcopy(theirs)
    with quiet():
        shell.save_pretrained(directory, state_dict=state)


def _whole(
    auto_class: Any,
    config: PretrainedConfig,
    backbone: Backbone,
    role: str | None,
    extra: dict[str, Tensor],
    device: torch.device | str = "cpu",
) -> tuple[Any, dict[str, Tensor]]:
    """A model of transformers without numbers, and the numbers that belong into it."""
    try:
        with torch.device("meta"), quiet():
            shell = auto_class.from_config(config, dtype=dtype_of(backbone.spec))
    except ValueError as error:
        raise ConfigurationError(
            f"transformers has no {auto_class.__name__} for {config.model_type!r}: {error}"
        ) from error
    merged = merged_state(backbone, role, device)
    state = _renamed(merged, backbone, shell.base_model_prefix) | extra
    quantized = {
        f"{path.replace('.base_layer', '')}.weight": module.weight
        for path, module in backbone.model.named_modules()
        if isinstance(module, Linear4bit | Linear8bitLt)
    }
    for key in _renamed(quantized, backbone, shell.base_model_prefix):
        # bitsandbytes has turned the layers of GPT-2 and its kin, whose weights are (in, out).
        if isinstance(shell.get_submodule(key.removesuffix(".weight")), Conv1D):
            state[key] = state[key].t().contiguous()
    wanted = set(shell.state_dict())
    state = {name: value for name, value in state.items() if name in wanted}
    missing = sorted(wanted - set(state))
    if missing:
        raise ConfigurationError(
            f"{type(shell).__name__} has weights that the backbone lacks: {missing[:5]}. It can't be exported."
        )
    embedding = shell.get_input_embeddings()
    key = next(f"{name}.weight" for name, part in shell.named_modules() if part is embedding)
    # Rows of zeros for an added pad token, which nothing ever reads.
    lacking = config.get_text_config().vocab_size - len(state[key])
    if lacking > 0:
        state[key] = torch.cat([state[key], state[key].new_zeros(lacking, state[key].shape[1])])
    return shell, state


def _export_directory(path: str | Path, needed: int) -> AbstractContextManager[Path]:
    return whole_directory(Path(path), RECORD, "The export", needed, CheckpointError)


def _renamed(state: dict[str, Tensor], backbone: Backbone, prefix: str) -> dict[str, Tensor]:
    if backbone.decoder is backbone.model:  # loaded without LM head: its names lack the trunk's
        return {f"{prefix}.{name}": value for name, value in state.items()}
    return state


def _never_last(
    tokenizer: PreTrainedTokenizerBase, eos: set[int], rows: int, *, may_grow: bool
) -> int:
    """Settle the tokenizer's pad token on one that never ends a text; returns its id."""
    added = sorted(tokenizer.added_tokens_decoder)
    usable = {*tokenizer.all_special_ids, *added} - eos
    ends = tokenizer.pad_token_id, tokenizer.unk_token_id
    for candidate in (*ends, *added, tokenizer.bos_token_id):
        if candidate in usable:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(candidate)
            return int(candidate)
    if len(tokenizer) >= rows and not may_grow:
        raise ConfigurationError(
            "The tokenizer has no special token beside EOS, and the base's embeddings have no room for one, so batches "
            "for an adapter couldn't be padded. Export with merge=True."
        )
    tokenizer.add_special_tokens({"pad_token": _PAD})
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id


def _float_config(
    backbone: Backbone, pad_token_id: int | None = None, **changes: Any
) -> PretrainedConfig:
    config: PretrainedConfig = copy.deepcopy(backbone.model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    set_attention(config, None)  # ours isn't registered with whoever loads the export
    for name, value in changes.items():
        setattr(config, name, value)
    if pad_token_id is not None:
        text = config.get_text_config()
        text.pad_token_id, text.vocab_size = pad_token_id, max(text.vocab_size, pad_token_id + 1)
    return config


def place_of(name: str | None) -> str | None:
    """Where a model is: of a directory the whole path; a hub's name stays as it is."""
    return str(Path(name).resolve()) if name is not None and Path(name).is_dir() else name


def _record(
    backbone: Backbone, kind: Any, as_adapter: bool, tokenizer: PreTrainedTokenizerBase
) -> ExportRecord:
    form: Any = "adapter" if as_adapter else "model"
    base, fingerprint = place_of(backbone.spec.name), tokenizer_fingerprint(tokenizer)
    return ExportRecord(kind, form, base, fingerprint, prompts=backbone.prompts)


@torch.no_grad()
def merged_state(
    backbone: Backbone, role: str | None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """The model's parameters with an adapter merged in, by their names in a model without adapters.

    A quantized base is dequantized into the copy first: merging into its 4-bit weights would round the adapter away.

    Args:
        backbone: Its `model` gives the names.
        role: Whose adapter; None or a role without one gives the base.
        device: Where they are put; those that nothing changes and that are there already aren't copied.
    """
    layers: list[Any] = []
    if role is not None and role in backbone.adapters:
        layers = backbone.adapted_layers(role)
    adapted = {layer.get_base_layer(): layer for layer in layers}
    state: dict[str, Tensor] = {}
    for path, module in backbone.model.named_modules():
        if ".lora_" in path:
            continue
        prefix = path.replace(".base_layer", "")
        for name, value in state_tensors(module):
            tensor = value
            if name == "weight":
                tensor = float_weight(module, dtype_of(backbone.spec))
                if module in adapted:
                    delta = adapted[module].get_delta_weight(role)
                    tensor = (tensor.float() + delta.float()).to(tensor.dtype)
            state[f"{prefix}.{name}" if prefix else name] = tensor.detach().to(device)
    return state
