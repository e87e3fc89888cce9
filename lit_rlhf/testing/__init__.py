"""Tiny models, a tokenizer and synthetic data, built in code and offline: for tests, examples and the demo."""

from lit_rlhf.testing.models import make_tiny_model, tiny_config, write_tiny_model
from lit_rlhf.testing.preferences import (
    tiny_demonstrations,
    tiny_preferences,
    tiny_prompts,
    tiny_rankings,
    write_jsonl,
)
from lit_rlhf.testing.tokenizers import CHAT_TEMPLATE, make_tokenizer, make_word_tokenizer

__all__ = [
    "CHAT_TEMPLATE",
    "make_tiny_model",
    "make_tokenizer",
    "make_word_tokenizer",
    "tiny_config",
    "tiny_demonstrations",
    "tiny_preferences",
    "tiny_prompts",
    "tiny_rankings",
    "write_jsonl",
    "write_tiny_model",
]
