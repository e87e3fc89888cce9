"""What is optimized, as small classes to inject, each of which holds its formula (layer L2).

Reward losses, preference losses, advantages, surrogates, KL losses, reductions and KL control are independent choices;
a named method is a point in their product. All are callable on tensors in plain PyTorch, and unreduced.
"""

from lit_rlhf.objectives.advantages import (
    Advantage as Advantage,
    BatchNormalized as BatchNormalized,
    GroupCentered as GroupCentered,
    GroupNormalized as GroupNormalized,
    LeaveOneOut as LeaveOneOut,
    MovingBaseline as MovingBaseline,
    RewardToGo as RewardToGo,
    Whitened as Whitened,
)
from lit_rlhf.objectives.best_of_n import BestOfN as BestOfN, places_among as places_among
from lit_rlhf.objectives.divergences import (
    Divergence as Divergence,
    GeneralizedJSD as GeneralizedJSD,
)
from lit_rlhf.objectives.kl_control import (
    AdaptiveKL as AdaptiveKL,
    BiasedK3 as BiasedK3,
    FixedKL as FixedKL,
    KLController as KLController,
    KLLoss as KLLoss,
    SequenceK2 as SequenceK2,
    UnbiasedK3 as UnbiasedK3,
)
from lit_rlhf.objectives.listwise import (
    NCA as NCA,
    PRO as PRO,
    RRHF as RRHF,
    InfoNCA as InfoNCA,
    LiPOLambda as LiPOLambda,
    ListwiseLoss as ListwiseLoss,
    PlackettLuceDPO as PlackettLuceDPO,
)
from lit_rlhf.objectives.oracles import (
    BernoulliLabels as BernoulliLabels,
    HardLabels as HardLabels,
    PreferenceOracle as PreferenceOracle,
    SoftLabels as SoftLabels,
)
from lit_rlhf.objectives.pairwise.adaptive import (
    AOT as AOT,
    TDPO1 as TDPO1,
    TDPO2 as TDPO2,
    WPO as WPO,
    BetaDPO as BetaDPO,
    UnpairedAOT as UnpairedAOT,
)
from lit_rlhf.objectives.pairwise.anchored import (
    SPPO as SPPO,
    APODown as APODown,
    APOZero as APOZero,
    BCOPair as BCOPair,
    CalDPO as CalDPO,
    NCAPair as NCAPair,
)
from lit_rlhf.objectives.pairwise.links import (
    EXO as EXO,
    FDPO as FDPO,
    IPO as IPO,
    AlphaDivergenceDPO as AlphaDivergenceDPO,
    DiscoPOP as DiscoPOP,
    ExponentialGPO as ExponentialGPO,
    ForwardKLDPO as ForwardKLDPO,
    JensenShannonDPO as JensenShannonDPO,
    MeanIPO as MeanIPO,
    ReverseKLDPO as ReverseKLDPO,
    RSOHinge as RSOHinge,
    SavageGPO as SavageGPO,
    SquaredGPO as SquaredGPO,
)
from lit_rlhf.objectives.pairwise.logistic import (
    DPO as DPO,
    DPOP as DPOP,
    RPO as RPO,
    SPIN as SPIN,
    ConservativeDPO as ConservativeDPO,
    LengthDesensitizedDPO as LengthDesensitizedDPO,
    LengthNormalizedDPO as LengthNormalizedDPO,
    LengthRegularizedDPO as LengthRegularizedDPO,
    RobustDPO as RobustDPO,
    SoftLabelDPO as SoftLabelDPO,
)
from lit_rlhf.objectives.pairwise.reference_free import (
    CPO as CPO,
    ORPO as ORPO,
    AlphaPO as AlphaPO,
    ReferenceFreeLoss as ReferenceFreeLoss,
    SimPO as SimPO,
    SLiC as SLiC,
)
from lit_rlhf.objectives.pointwise import (
    BCO as BCO,
    DROV as DROV,
    KTO as KTO,
    NPO as NPO,
    PointwiseLoss as PointwiseLoss,
    UnpairedAPOZero as UnpairedAPOZero,
)
from lit_rlhf.objectives.preference import (
    NLL as NLL,
    Completion as Completion,
    PairwiseLoss as PairwiseLoss,
    PreferenceLoss as PreferenceLoss,
    PreferenceStats as PreferenceStats,
    WeightedSum as WeightedSum,
)
from lit_rlhf.objectives.reductions import (
    ConstantLength as ConstantLength,
    Reduction as Reduction,
    SequenceMean as SequenceMean,
    SequenceSum as SequenceSum,
    TokenMean as TokenMean,
)
from lit_rlhf.objectives.reward import (
    AllPairs as AllPairs,
    BradleyTerry as BradleyTerry,
    Outcome as Outcome,
    PairScoreLoss as PairScoreLoss,
    PlackettLuce as PlackettLuce,
    RankingLoss as RankingLoss,
    Regression as Regression,
    RewardLoss as RewardLoss,
    RewardLossSum as RewardLossSum,
    ScaledBradleyTerry as ScaledBradleyTerry,
)
from lit_rlhf.objectives.reward_heads import (
    Attributes as Attributes,
    GatedAttributes as GatedAttributes,
    GaussianRegression as GaussianRegression,
    HeadEnsemble as HeadEnsemble,
    LengthDebiased as LengthDebiased,
    Process as Process,
)
from lit_rlhf.objectives.surrogates import (
    ClippedSurrogate as ClippedSurrogate,
    ImportanceCorrection as ImportanceCorrection,
    MaskedImportance as MaskedImportance,
    Reinforce as Reinforce,
    SequenceClipped as SequenceClipped,
    Surrogate as Surrogate,
    TruncatedImportance as TruncatedImportance,
    WeightClipped as WeightClipped,
)
