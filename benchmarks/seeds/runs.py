"""One run of one method with one seed, what is measured of it, and the table of all."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev
from typing import Any

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR

from benchmarks.markdown import table
from benchmarks.quiet import History, quiet_trainer
from lit_rlhf.callbacks.guards import distinct_2
from lit_rlhf.data import PromptDataModule, RowsSource
from lit_rlhf.demo.results import policy_summary
from lit_rlhf.demo.stages import PolicyResult, Stages, complete_heldout
from lit_rlhf.internals.lightning import silence_noise
from lit_rlhf.models import ModelSpec, ValueModel
from lit_rlhf.modules import (
    GRPOPolicyModule,
    PolicyModule,
    PPOPolicyModule,
    RLOOPolicyModule,
    Updates,
    ValueLoss,
)
from lit_rlhf.objectives import FixedKL
from lit_rlhf.rewards import ModelReward
from lit_rlhf.rollout import Sampling

Row = dict[str, float | str | bool]


@dataclass(frozen=True)
class Method:
    """What tells a method from the others; all else is the same, completions per iteration too.

    Attributes:
        module: The class.
        num_samples: Completions per prompt.
        options: Further arguments, made anew for each run: a critic holds weights.
    """

    module: type[PolicyModule]
    num_samples: int
    options: Callable[[], dict[str, Any]] = dict


METHODS = {
    "PPO": Method(
        PPOPolicyModule,
        2,
        lambda: {"value": ValueModel(), "value_loss": ValueLoss(coef=0.5, lr=1e-3)},
    ),
    "RLOO": Method(RLOOPolicyModule, 4),
    "GRPO": Method(GRPOPolicyModule, 4),
}
"""By name."""

# The best text there is has 0.73 of its word pairs distinct.
MAX_KL, MIN_ENTROPY, MIN_DISTINCT = 30.0, 0.02, 0.5
COLLAPSED = (
    "A run has collapsed if its gold reward isn't above that of the initial policy, or its KL to it is above "
    f"{MAX_KL:g} nats per completion, or the entropy of its last tenth of iterations is below {MIN_ENTROPY:g} nats per "
    f"token, or less than {MIN_DISTINCT:g} of the pairs of neighbouring words within its "
    "completions are distinct, or any of "
    "these is no number."
)
"""The definition."""


@dataclass(frozen=True)
class Budget:
    """What a run may cost: about half a minute on one core.

    Attributes:
        iterations: Rounds of rollout and update.
        completions: Completions per iteration.
        num_epochs: Passes over them.
        num_minibatches: Optimizer steps per pass.
        max_new_tokens: Longest completion.
        kl_coef: Reward given up per nat, of a reward with deviation 1.
        lr: Peak learning rate, which falls to a tenth.
        heldout_prompts: Prompts by which a policy is judged.
    """

    iterations: int = 30
    completions: int = 128
    num_epochs: int = 2
    num_minibatches: int = 2
    max_new_tokens: int = 24
    kl_coef: float = 0.05
    lr: float = 5e-4
    heldout_prompts: int = 256


class Runs:
    """Runs that share an initial policy and a reward model.

    Args:
        stages: Where those two are, trained.
        budget: Of each run.
    """

    def __init__(self, stages: Stages, budget: Budget) -> None:
        self.stages = stages
        self.budget = budget

    def measure(self, method: str, seed: int) -> Row:
        """Train and judge: a row. The seed decides prompts' order, rollouts, minibatches and a critic's head."""
        start = time.perf_counter()
        module, history = self._module(method, seed), History()
        data = self._data(module.num_samples, seed)
        trainer = quiet_trainer(history, use_distributed_sampler=False)
        before, _ = complete_heldout(trainer, module, data)
        trainer.fit(module, datamodule=data)
        after, kl = complete_heldout(trainer, module, data)
        result = PolicyResult(before, after, kl, history.rows, [])
        last = history.rows[-max(len(history.rows) // 10, 1) :]
        row: Row = {
            "method": method,
            "seed": seed,
            **policy_summary(result, self.stages.world.world),
            "entropy": fmean(_entropy(metrics) for metrics in last),
            "entropy_before": _entropy(history.rows[0]),
            "distinct_within": distinct_2([str(sample["response"]) for sample in after]),
            "seconds": time.perf_counter() - start,
        }
        return row | {"collapsed": collapsed(row)}

    def _module(self, method: str, seed: int) -> PolicyModule:
        budget = self.budget
        recipe = METHODS[method]
        module = recipe.module(
            ModelSpec(name=str(self.stages.initial), init_seed=seed),
            reward=ModelReward(str(self.stages.reward_model), normalize=True),
            sampling=Sampling(max_new_tokens=budget.max_new_tokens),
            num_samples=recipe.num_samples,
            updates=Updates(epochs=budget.num_epochs, minibatches=budget.num_minibatches),
            kl=FixedKL(budget.kl_coef),
            missing_eos_penalty=1.0,
            optimizer=partial(AdamW, lr=budget.lr, betas=(0.9, 0.95), weight_decay=0.01),
            seed=seed,
            **recipe.options(),
        )
        steps = budget.iterations * module.updates.per_iteration
        module.lr_scheduler_factory = partial(
            LinearLR, start_factor=1.0, end_factor=0.1, total_iters=steps
        )
        return module

    def _data(self, num_samples: int, seed: int) -> PromptDataModule:
        prompts, world = self.budget.completions // num_samples, self.stages.world
        return PromptDataModule(
            RowsSource(world.prompts(self.budget.iterations * prompts)),
            RowsSource(world.prompts(self.budget.heldout_prompts, "heldout")),
            tokenizer=self.stages.tokenizer,
            batch_size=prompts,
            eval_batch_size=self.budget.heldout_prompts,
            seed=seed,
            invalid="error",
            cache_dir=str(self.stages.output / "cache"),
        )


def one_thread() -> None:
    """What a process of several at a time starts with."""
    silence_noise()
    torch.set_num_threads(1)


def collapsed(row: Row) -> bool:
    """See `COLLAPSED`; comparisons that a number which is none fails."""
    healthy = (
        float(row["gold_after"]) > float(row["gold_before"])
        and float(row["kl"]) <= MAX_KL
        and float(row["entropy"]) >= MIN_ENTROPY
        and float(row["distinct_within"]) >= MIN_DISTINCT
    )
    return not healthy


def _entropy(metrics: dict[str, Any]) -> float:
    """Nats per token."""
    return float(
        metrics["train/objective/entropy"] / max(metrics["train/completions/mean_length"], 1.0)
    )


COLUMNS = {
    "gold_before": "gold before",
    "gold_after": "gold after",
    "gap_closed": "gap closed",
    "kl": "KL, nats",
    "distinct_2_after": "distinct-2",
    "entropy": "entropy, nats a token",
    "seconds": "seconds",
}
"""What is shown of each run."""


def summarize(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """By method: number of runs and of collapsed ones; of each column mean, deviation, least and most."""
    found: dict[str, dict[str, float]] = {}
    for method in dict.fromkeys(str(row["method"]) for row in rows):
        own = [row for row in rows if row["method"] == method]
        summary: dict[str, float] = {
            "runs": len(own),
            "collapsed": sum(bool(row["collapsed"]) for row in own),
        }
        for name in COLUMNS:
            values = [float(row[name]) for row in own]
            spread = stdev(values) if len(values) > 1 else 0.0
            summary |= {f"{name}_mean": fmean(values), f"{name}_std": spread}
            summary |= {f"{name}_min": min(values), f"{name}_max": max(values)}
        found[method] = summary
    return found


def markdown(rows: Sequence[Row], budget: Budget) -> str:
    """A table of the methods (mean, plus or minus the deviation over seeds, worst seed) and one of all runs."""
    what = f"{budget.iterations} iterations of {budget.completions} completions, KL coefficient {budget.kl_coef:g}"
    methods = []
    for method, summary in summarize(rows).items():
        cells = [
            f"{summary[f'{name}_mean']:.3g} ± {summary[f'{name}_std']:.2g}" for name in COLUMNS
        ]
        counts = (f"{summary['runs']:g}", f"{summary['collapsed']:g}")
        methods.append([method, *counts, *cells, f"{summary['gap_closed_min']:.3g}"])
    runs = [
        [str(row["method"]), str(row["seed"]), "yes" if row["collapsed"] else "no"]
        + [f"{float(row[name]):.3g}" for name in COLUMNS]
        for row in rows
    ]
    parts = [
        f"{what}; gold is the true utility on {budget.heldout_prompts} held-out prompts. {COLLAPSED}",
        table(["method", "runs", "collapsed", *COLUMNS.values(), "least gap closed"], methods),
        table(["method", "seed", "collapsed", *COLUMNS.values()], runs),
    ]
    return "\n\n".join(parts) + "\n"
