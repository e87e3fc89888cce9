"""Rewards."""

from lit_rlhf.rewards.base import Reward

__all__ = ["Reward"]
