"""Every causal language model of transformers, shrunk from its own default config, and its log-probs row by row."""

import signal
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lit_rlhf.testing import make_tokenizer

TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
WINDOW, SWITCH = 8, 16
MOST_WEIGHTS = 3_000_000

_HIDDEN, _HEADS, _LAYERS, _POSITIONS = 32, 4, 2, 64
_SIZES: tuple[tuple[tuple[str, ...], int], ...] = (
    # By the first word that the option's name holds; order matters.
    (("original_max_position",), SWITCH),
    (("vocab_size_per_layer", "vocab_size"), 300),
    (("window", "attention_chunk_size", "local_attention"), WINDOW),
    (("max_position", "n_positions", "n_ctx", "max_seq_len", "max_sequence", "seq_length"), _POSITIONS),
    (("num_key_value_heads", "kv_heads", "num_kv_heads", "num_global_key_value"), 2),
    (("qk_rope_head_dim", "rotary_dim", "index_head_dim"), 4),
    (("qk_nope_head_dim", "v_head_dim", "qk_head_dim"), 8),
    (("head_dim", "kv_channels", "d_kv", "attention_head_size"), 8),
    (("num_attention_heads", "n_head", "num_heads", "attention_heads", "mamba_n_heads", "index_n_heads"), _HEADS),
    (("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers", "n_layers"), _LAYERS),
    (("lora_rank", "_rank"), 8),
    (("shared_experts", "num_shared_expert"), 1),
    (("experts_per_tok", "num_experts_per", "moe_topk", "moe_top_k", "top_k_experts", "num_selected"), 2),
    (("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "n_experts"), 4),
    (("n_group", "topk_group"), 1),
    (("intermediate", "ffn", "n_inner", "d_ff", "shared_expert_intermediate", "mlp_dim"), 48),
    (("hidden_size_per_layer",), 8),
    (("embedding_size", "hidden_size", "d_model", "n_embd", "dim_model", "lru_width", "word_embed"), _HIDDEN),
    (("state_size", "d_state", "ssm_state"), 8),
)  # fmt: skip


_OWN: dict[str, dict[str, Any]] = {
    # What a type wants beside sizes.
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "phi3": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": SWITCH,
        }
    },
}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}


def is_size(value: object) -> bool:
    return type(value) is int and value > 0


def size_for(name: str, value: int) -> int | None:
    if name.endswith(("_id", "_ids")):
        return None
    for words, size in _SIZES:
        if any(word in name for word in words):
            return min(size, value)
    return None


def shrunk(config: PretrainedConfig) -> dict[str, Any]:
    """Options that make a config tiny."""
    options: dict[str, Any] = {"initializer_range": 0.15}
    for name, value in config.to_dict().items():
        if isinstance(value, dict) and name.endswith("_config"):
            inner = getattr(config, name, None)
            if isinstance(inner, PretrainedConfig):
                options[name] = {**shrunk(inner), "model_type": inner.model_type}
        elif is_size(value) and (size := size_for(name, value)) is not None:
            options[name] = size
    if "qk_rope_head_dim" in options:  # latent attention: each head has keys of its own
        options["num_key_value_heads"] = options.get("num_attention_heads", _HEADS)
        options.pop("head_dim", None)
    settable = not isinstance(getattr(type(config), "layer_types", None), property)
    kinds = getattr(config, "layer_types", None) if settable else None
    if kinds:  # one layer of each kind, and at least two
        chosen = (
            [*dict.fromkeys(kinds), kinds[0]] if len(set(kinds)) == 1 else [*dict.fromkeys(kinds)]
        )
        options["layer_types"] = chosen
        for name in ("num_hidden_layers", "n_layer", "num_layers"):
            if name in options:
                options[name] = len(chosen)
    options.update(pad_token_id=0, bos_token_id=1, eos_token_id=1)
    return options


def tiny_config(model_type: str) -> PretrainedConfig:
    """A config of a type small enough to be built, its windows and switches shorter than the rows of the walk.

    Raises what transformers raises where no options that were tried make one.
    """
    kind = CONFIG_MAPPING[model_type]
    options = {**shrunk(kind()), **_OWN.get(model_type, {})}
    failed: Exception | None = None
    for more in ({}, {"head_dim": 8}, _ROPE, {"head_dim": 8, **_ROPE}):
        try:
            config = kind(**{**options, **more})
            with torch.device("meta"):
                AutoModelForCausalLM.from_config(config)
        except Exception as error:  # noqa: BLE001 - whatever a type says of options
            failed = failed or error
        else:
            return config
    assert failed is not None
    raise failed


def build(config: PretrainedConfig, directory: Path) -> None:
    """Random weights of a config and a tokenizer, saved as transformers does."""
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    count = sum(p.numel() for p in shell.parameters())
    if count > MOST_WEIGHTS:
        raise ValueError(f"not tiny: {count:,} weights")
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    row_logprobs(model, range(5, 25), range(30, 40))
    make_tokenizer().save_pretrained(directory)


@torch.no_grad()
def row_logprobs(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """(T,) of an answer, by one plain forward of one row."""
    ids = torch.tensor([[*prompt, *answer]])
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    start = len(prompt)
    return logits[start - 1 : -1].log_softmax(-1).gather(-1, ids[0, start:, None])[:, 0]


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after some seconds."""

    def stop(number: int, frame: types.FrameType | None) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
