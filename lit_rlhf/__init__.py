"""Preference alignment of language models as PyTorch Lightning components.

The names here are loaded when they are first asked for, so that `import lit_rlhf.data` pulls in no policy code and the
command line's help answers at once. Type checkers and editors read `__init__.pyi`.
"""

from importlib import import_module

__version__ = "0.1.0.dev0"

_HOMES = {
    "cli.building": "from_config",
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
    "rollout": "HFEngine NativeEngine RolloutEngine RolloutRequest Sampling",
}
_HOME = {name: package for package, names in _HOMES.items() for name in names.split()}
__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604 - computed, so that each name stands once


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'lit_rlhf' has no attribute {name!r}")
    return getattr(import_module(f"lit_rlhf.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
