"""Losses of preference pairs, one class each."""

from lit_rlhf.objectives.pairwise.adaptive import TDPO1, TDPO2, WPO, BetaDPO
from lit_rlhf.objectives.pairwise.anchored import SPPO, APODown, APOZero, BCOPair, CalDPO, NCAPair
from lit_rlhf.objectives.pairwise.base import Completion, Pairs, PairwiseLoss, ReferenceFreeLoss
from lit_rlhf.objectives.pairwise.divergences import (
    FDPO,
    AlphaDivergenceDPO,
    ForwardKLDPO,
    JensenShannonDPO,
    ReverseKLDPO,
)
from lit_rlhf.objectives.pairwise.links import (
    EXO,
    IPO,
    DiscoPOP,
    ExponentialGPO,
    MeanIPO,
    RSOHinge,
    SavageGPO,
    SquaredGPO,
)
from lit_rlhf.objectives.pairwise.logistic import (
    DPO,
    DPOP,
    RPO,
    SPIN,
    ConservativeDPO,
    LengthDesensitizedDPO,
    LengthNormalizedDPO,
    LengthRegularizedDPO,
    RobustDPO,
    SoftLabelDPO,
)
from lit_rlhf.objectives.pairwise.reference_free import CPO, ORPO, AlphaPO, SimPO, SLiC
from lit_rlhf.objectives.pairwise.transport import AOT, UnpairedAOT

__all__ = [
    "AOT",
    "CPO",
    "DPO",
    "DPOP",
    "EXO",
    "FDPO",
    "IPO",
    "ORPO",
    "RPO",
    "SPIN",
    "SPPO",
    "TDPO1",
    "TDPO2",
    "WPO",
    "APODown",
    "APOZero",
    "AlphaDivergenceDPO",
    "AlphaPO",
    "BCOPair",
    "BetaDPO",
    "CalDPO",
    "Completion",
    "ConservativeDPO",
    "DiscoPOP",
    "ExponentialGPO",
    "ForwardKLDPO",
    "JensenShannonDPO",
    "LengthDesensitizedDPO",
    "LengthNormalizedDPO",
    "LengthRegularizedDPO",
    "MeanIPO",
    "NCAPair",
    "Pairs",
    "PairwiseLoss",
    "RSOHinge",
    "ReferenceFreeLoss",
    "ReverseKLDPO",
    "RobustDPO",
    "SLiC",
    "SavageGPO",
    "SimPO",
    "SoftLabelDPO",
    "SquaredGPO",
    "UnpairedAOT",
]
