"""Preference alignment of language models as PyTorch Lightning components.

The names here are loaded when they are first asked for, so that `import lit_rlhf.data` pulls in no policy code and the
command line's help answers at once.
"""

# ruff: noqa: I001 - one statement for each package
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

if (
    TYPE_CHECKING
):  # what type checkers and editors read: they know each name, and refuse a misspelled one
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
        Sampling as Sampling,
    )
else:
    from importlib import import_module

    _HOMES = {
        "data": (
            "DemonstrationDataModule PreferenceDataModule ProcessDataModule PromptDataModule "
            "RankedDataModule UnpairedDataModule"
        ),
        "models": "Backbone LoraSpec ModelSpec ValueAdapter ValueHead ValueModel",
        "modules": (
            "GRPOPolicyModule GroupPolicyModule PPOPolicyModule PolicyModule PreferenceModule "
            "RLOOPolicyModule RewardModelModule SupervisedModule"
        ),
        "rewards": "FunctionReward ModelReward Reward",
        "rollout": "HFEngine NativeEngine RolloutEngine Sampling",
    }
    _HOME = {name: package for package, names in _HOMES.items() for name in names.split()}
    __all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604 - computed, so that each name stands once

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module 'lit_rlhf' has no attribute {name!r}")
        return getattr(import_module(f"lit_rlhf.{_HOME[name]}"), name)

    def __dir__() -> list[str]:
        return __all__
