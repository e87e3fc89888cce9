"""Attention over grouped heads without copies of keys and values."""

from transformers import PreTrainedModel


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Placeholder until measured."""
