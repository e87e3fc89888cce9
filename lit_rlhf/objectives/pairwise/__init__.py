"""Losses of preference pairs, one class each; `lit_rlhf.objectives` names them."""
