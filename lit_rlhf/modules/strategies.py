"""Makes `Trainer(strategy="fsdp2")` and `--trainer.strategy fsdp2` known, once `lit_rlhf.modules` is imported."""

from lightning.pytorch.strategies import StrategyRegistry

from lit_rlhf.internals.lightning import FSDP2Strategy

__all__ = ["FSDP2Strategy"]

StrategyRegistry.register("fsdp2", FSDP2Strategy, "Parameters divided over all processes (FSDP2)")
