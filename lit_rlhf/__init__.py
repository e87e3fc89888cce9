"""Preference alignment of language models as PyTorch Lightning components."""

__version__ = "0.1.0.dev0"
