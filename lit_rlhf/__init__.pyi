from lit_rlhf.cli.building import from_config as from_config
from lit_rlhf.data import (
    DemonstrationDataModule as DemonstrationDataModule,
    PreferenceDataModule as PreferenceDataModule,
    ProcessDataModule as ProcessDataModule,
    PromptDataModule as PromptDataModule,
    RankedDataModule as RankedDataModule,
    UnpairedDataModule as UnpairedDataModule,
)
from lit_rlhf.models import (
    Backbone as Backbone,
    LoraSpec as LoraSpec,
    ModelSpec as ModelSpec,
    ValueAdapter as ValueAdapter,
    ValueHead as ValueHead,
    ValueModel as ValueModel,
)
from lit_rlhf.modules import (
    GroupPolicyModule as GroupPolicyModule,
    GRPOPolicyModule as GRPOPolicyModule,
    PolicyModule as PolicyModule,
    PPOPolicyModule as PPOPolicyModule,
    PreferenceModule as PreferenceModule,
    RewardModelModule as RewardModelModule,
    RLOOPolicyModule as RLOOPolicyModule,
    SupervisedModule as SupervisedModule,
)
from lit_rlhf.rewards import (
    FunctionReward as FunctionReward,
    ModelReward as ModelReward,
    Reward as Reward,
)
from lit_rlhf.rollout import (
    HFEngine as HFEngine,
    NativeEngine as NativeEngine,
    RolloutEngine as RolloutEngine,
    RolloutRequest as RolloutRequest,
    Sampling as Sampling,
)

__version__: str
