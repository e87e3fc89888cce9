"""Tiny models, a tokenizer and synthetic data, built in code and offline: for tests, examples and the demo."""

from lit_rlhf.testing.models import (
    make_tiny_model as make_tiny_model,
    tiny_config as tiny_config,
    write_tiny_model as write_tiny_model,
)
from lit_rlhf.testing.preferences import (
    tiny_demonstrations as tiny_demonstrations,
    tiny_preferences as tiny_preferences,
    tiny_prompts as tiny_prompts,
    tiny_rankings as tiny_rankings,
    write_jsonl as write_jsonl,
)
from lit_rlhf.testing.tokenizers import (
    CHAT_TEMPLATE as CHAT_TEMPLATE,
    make_tokenizer as make_tokenizer,
    make_word_tokenizer as make_word_tokenizer,
)
