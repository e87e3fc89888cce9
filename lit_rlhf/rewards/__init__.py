"""Scoring completions: trained reward models, functions, rules, and what is made of them."""

from lit_rlhf.rewards.base import Reward
from lit_rlhf.rewards.combine import (
    Ensemble,
    EnsembleMean,
    EnsembleUncertainty,
    EnsembleWorst,
    MonitoredReward,
    WeightedSum,
)
from lit_rlhf.rewards.constrained import ConstrainedReward
from lit_rlhf.rewards.functions import FunctionReward
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rewards.normalization import NormalizedReward
from lit_rlhf.rewards.rules import (
    ExactAnswerReward,
    LengthReward,
    LexiconReward,
    PatternReward,
    TextReward,
)

__all__ = [
    "ConstrainedReward",
    "Ensemble",
    "EnsembleMean",
    "EnsembleUncertainty",
    "EnsembleWorst",
    "ExactAnswerReward",
    "FunctionReward",
    "LengthReward",
    "LexiconReward",
    "ModelReward",
    "MonitoredReward",
    "NormalizedReward",
    "PatternReward",
    "Reward",
    "TextReward",
    "WeightedSum",
]
