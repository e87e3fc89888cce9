"""A tiny llama built in code."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from lit_rlhf.models.loading import quiet
from lit_rlhf.testing.tokenizers import make_tokenizer


def tiny_config(vocab_size: int, **overrides: Any) -> LlamaConfig:
    """Configure a llama of two layers and width 32, with four heads that share two key-value heads.

    Args:
        vocab_size: Number of tokens.
        **overrides: Further arguments of `LlamaConfig`; they win over the values here.
    """
    options: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # Larger than a trained model's, so that logits and attention of the random model differ visibly by input.
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**{**options, **overrides})


def make_tiny_model(
    tokenizer: PreTrainedTokenizerBase, *, seed: int = 0, **overrides: Any
) -> LlamaForCausalLM:
    """Build a randomly initialised tiny llama for a tokenizer.

    Args:
        tokenizer: Gives the size of the vocabulary and the pad, BOS and EOS ids of the config.
        seed: Of the initial weights; the global generator is left as it was.
        **overrides: See `tiny_config`.
    """
    ids = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(tiny_config(len(tokenizer), **{**ids, **overrides}))
    model.eval()
    return model


def write_tiny_model(
    path: str | Path,
    *,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **overrides: Any,
) -> Path:
    """Save a tiny llama and its tokenizer with `save_pretrained`.

    Args:
        path: Directory, made if it is missing.
        seed: Of the initial weights.
        tokenizer: Default: `make_tokenizer()`.
        **overrides: See `tiny_config`.

    Returns:
        The directory.
    """
    path = Path(path)
    tokenizer = tokenizer if tokenizer is not None else make_tokenizer()
    with quiet():
        make_tiny_model(tokenizer, seed=seed, **overrides).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
