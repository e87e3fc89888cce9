"""Scoring completions: trained reward models, functions, rules, and what is made of them."""

from lit_rlhf.rewards.base import Reward
from lit_rlhf.rewards.combine import Ensemble, EnsembleMean, EnsembleUncertainty, EnsembleWorst, WeightedSum
from lit_rlhf.rewards.functions import FunctionReward
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rewards.normalization import NormalizedReward
from lit_rlhf.rewards.rules import ExactAnswerReward, LengthReward, LexiconReward, PatternReward, TextReward

__all__ = [
    "Ensemble",
    "EnsembleMean",
    "EnsembleUncertainty",
    "EnsembleWorst",
    "ExactAnswerReward",
    "FunctionReward",
    "LengthReward",
    "LexiconReward",
    "ModelReward",
    "NormalizedReward",
    "PatternReward",
    "Reward",
    "TextReward",
    "WeightedSum",
]
