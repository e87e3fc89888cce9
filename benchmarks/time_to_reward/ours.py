"""PPO, GRPO and online DPO with lit_rlhf."""

from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import AdamW

from benchmarks.peers.processes import report
from benchmarks.quiet import quiet_trainer, silence
from benchmarks.time_to_reward.race import PENALTY, Pace, Race
from benchmarks.workloads.lit import batches, spec
from benchmarks.workloads.shared import fill_adapters, start
from lit_rlhf.models import ValueHead
from lit_rlhf.modules import (
    GRPOPolicyModule,
    OnlineDPOPolicyModule,
    PolicyModule,
    PPOPolicyModule,
    Updates,
    ValueLoss,
)
from lit_rlhf.objectives import DPO, FixedKL, HardLabels
from lit_rlhf.rewards import ModelReward
from lit_rlhf.rollout import Sampling


class Watch(Callback):
    """Begins with the adapters that the peer begins with, and keeps the pace."""

    def __init__(self, race: Race, module: LightningModule) -> None:
        self.race = race
        self.pace = Pace(race, module.named_parameters)
        self.scores: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill the adapters."""
        fill_adapters(pl_module.named_parameters(), self.race.seed)
        self.pace.start()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """An iteration has ended."""
        self.pace.tick()
        self.scores.append(float(trainer.callback_metrics["train/objective/scores"]))


def policy(race: Race) -> PolicyModule:
    """The module of a method."""
    options: dict[str, Any] = {
        "sampling": Sampling(max_new_tokens=race.new_tokens),
        "missing_eos_penalty": PENALTY,
        "updates": Updates(epochs=race.epochs, minibatches=race.minibatches),
        "optimizer": partial(AdamW, lr=race.lr, betas=(0.9, 0.95), weight_decay=0.0),
        "seed": race.seed,
    }
    both = spec(race), ModelReward(race.reward_model, dtype=race.dtype)  # type: ignore[arg-type]
    if race.workload == "ppo":
        critic: dict[str, Any] = {"value": ValueHead(), "value_loss": ValueLoss(clip=0.5)}
        return PPOPolicyModule(*both, kl=FixedKL(0.05), **critic, **options)
    options["num_samples"] = race.num_samples
    if race.workload == "grpo":
        return GRPOPolicyModule(*both, kl=FixedKL(0.04), **options)
    return OnlineDPOPolicyModule(*both, loss=DPO(0.1), oracle=HardLabels(), **options)


def main() -> None:
    race = Race.from_command_line()
    start(race)
    silence()
    module = policy(race)
    watch = Watch(race, module)
    quiet_trainer(watch).fit(module, batches(race))
    report({"marks": watch.pace.marks, "scores": watch.scores})


if __name__ == "__main__":
    main()
