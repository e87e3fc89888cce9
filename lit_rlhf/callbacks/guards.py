"""Guards against policies that exploit their reward until nothing of the language model is left."""

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_rlhf.callbacks.checkpoint_io import checkpoint_problem
from lit_rlhf.callbacks.iteration_checkpoint import IterationCheckpoint
from lit_rlhf.callbacks.run_record import tell
from lit_rlhf.distributed import num_ranks, sum_over_ranks
from lit_rlhf.errors import ConfigurationError, LitRLHFError
from lit_rlhf.internals.lightning import callbacks_of, iterations_done
from lit_rlhf.options import check_option
from lit_rlhf.types import Sample

_STATE = ("lasting", "first_lengths", "rollbacks", "last_golds", "best_gold")
_KL, _ENTROPY = "train/objective/kl", "train/objective/entropy"
_LENGTH = "train/completions/mean_length"
_LIMITS = (
    *((name, 0.0, math.inf) for name in ("max_kl", "min_entropy", "max_gold_drop")),
    ("min_distinct", 0.0, 1.0),
    ("max_length_ratio", 1.0, math.inf),
)
"""What may be watched: each limit is above the first number, and at most the second."""
_GOLD, _PROXY = "train/rewards/gold/mean", "train/rewards/proxy/mean"


class PolicyCollapsedError(LitRLHFError):
    """The policy left the region in which its reward means anything."""


class CollapseGuard(Callback):
    r"""Watches a policy for the ways in which optimizing a reward goes wrong, and acts before a checkpoint is written.

    Three kinds of trouble trigger the action: the KL to the reference explodes, the entropy collapses, or the gold
    reward that watches beside the optimized one (`MonitoredReward`) falls: over-optimization. Two more only raise an
    alarm, a
    warning at the first iteration of each episode: responses repeat themselves, or their length drifts. Trouble counts
    once it has lasted for `patience` iterations in a row. Logs `train/guard/distinct_2` (mean over responses of
    distinct / all pairs of neighbouring words, arXiv:1510.03055) and `train/guard/length_ratio` where they are watched.

    `rollback` takes parameters and optimizer from the newest whole checkpoint from before the trouble began, and goes
    on: with the next prompts, other seeds, and the schedule and controllers where they are, so that it doesn't end up
    at the same place. `stop` ends the run with an error; nothing is saved or exported, and the checkpoints from before
    stay.

    Args:
        max_kl: Most KL of a whole sequence, in nats; about ten times what the run is meant to spend. None: not watched.
        min_entropy: Least entropy in nats per token; untrained models have 1 to 4, collapsed ones less than 0.1.
        min_distinct: Least share of distinct pairs of words within a response, 0 to 1; fluent text has above 0.9.
        max_gold_drop: Most that the gold reward's mean over the last `patience` iterations may be below the best such
            mean, in units of that reward; above 0.
        max_length_ratio: Most factor, above 1, between the mean length and that of the first `patience` iterations.
        patience: Iterations that trouble must last.
        action: What KL and entropy trigger: `warn`, `stop` or `rollback`.
        max_rollbacks: After so many, `rollback` stops too.

    Raises:
        ConfigurationError: An option is out of range, the module draws no samples, or nothing is there to roll back to.
        PolicyCollapsedError: The guard stopped the run.
    """

    def __init__(
        self,
        max_kl: float | None = None,
        min_entropy: float | None = None,
        min_distinct: float | None = None,
        max_length_ratio: float | None = None,
        max_gold_drop: float | None = None,
        patience: int = 3,
        action: Literal["warn", "stop", "rollback"] = "stop",
        max_rollbacks: int = 3,
    ) -> None:
        self.max_kl, self.min_entropy, self.min_distinct = max_kl, min_entropy, min_distinct
        self.max_length_ratio, self.max_gold_drop = max_length_ratio, max_gold_drop
        self.patience, self.action, self.max_rollbacks = patience, action, max_rollbacks
        self.rollbacks = 0
        self.lasting: dict[str, int] = {}
        self.first_lengths: list[float] = []
        self.last_golds: list[float] = []
        self.best_gold = -float("inf")
        for name, above, below in _LIMITS:
            limit = getattr(self, name)
            allowed = f"above {above:g}" + (f", at most {below:g}" if below < math.inf else "")
            check_option(limit is None or above < limit <= below, self, name, limit, allowed)
        check_option(patience >= 1, self, "patience", patience, "at least 1")
        check_option(max_rollbacks >= 0, self, "max_rollbacks", max_rollbacks, "0 or more")
        if all(getattr(self, name) is None for name, _, _ in _LIMITS):
            names = ", ".join(name for name, _, _ in _LIMITS)
            raise ConfigurationError(f"CollapseGuard watches nothing: set one or more of {names}.")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what can't be watched or restored."""
        if stage != "fit":
            return
        if not getattr(pl_module, "draws_samples", False):
            raise ConfigurationError(
                f"CollapseGuard watches a policy's samples, and {type(pl_module).__name__} draws none. Remove it from "
                "trainer.callbacks."
            )
        if self.action != "rollback":
            return
        if not any(isinstance(callback, IterationCheckpoint) for callback in callbacks_of(trainer)):
            raise ConfigurationError(
                "CollapseGuard(action='rollback') needs an IterationCheckpoint in trainer.callbacks."
            )
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise ConfigurationError(
                "CollapseGuard(action='rollback') can't restore sharded weights in the midst of a run. Use action: "
                "stop, and go on from a checkpoint by hand."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at what the iteration logged and sampled; act if trouble has lasted."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        troubles = self._serious(metrics)
        alarms = self._alarms(trainer, pl_module, outputs["samples"], metrics)
        self.lasting = {name: self.lasting.get(name, 0) + 1 for name in (*troubles, *alarms)}
        for name, said in alarms.items():
            if self.lasting[name] == self.patience:
                tell(trainer, f"Iteration {iterations_done(trainer)}: {said}")
        lasting = [name for name in troubles if self.lasting[name] >= self.patience]
        if lasting:
            said = " ".join(troubles[name] for name in lasting)
            since = max(self.lasting[name] for name in lasting)
            self._act(trainer, f"Iteration {iterations_done(trainer)}: {said}", since)

    # -- what is watched ----------------------------------------------------------------------------------------------

    def _serious(self, metrics: Mapping[str, float]) -> dict[str, str]:
        found = {}
        kl = metrics.get(_KL)
        # Not-a-number is no KL within bounds either.
        if self.max_kl is not None and kl is not None and not kl <= self.max_kl:
            said = f"the KL to the reference is {kl:.4g} nats per sequence"
            found["kl"] = f"{said}, above max_kl={self.max_kl:g}."
        if self.min_entropy is not None and _ENTROPY in metrics:
            entropy = metrics[_ENTROPY] / max(metrics.get(_LENGTH, 1.0), 1.0)
            if not entropy >= self.min_entropy:
                said = f"the entropy is {entropy:.4g} nats per token"
                found["entropy"] = f"{said}, below min_entropy={self.min_entropy:g}."
        if self.max_gold_drop is not None:
            found |= self._over_optimization(metrics, self.max_gold_drop)
        return found

    def _over_optimization(self, metrics: Mapping[str, float], most: float) -> dict[str, str]:
        if _GOLD not in metrics:
            raise ConfigurationError(
                "CollapseGuard(max_gold_drop=...) watches a monitor called 'gold', and the reward has none. Wrap it: "
                "MonitoredReward(reward, monitors={'gold': ...})."
            )
        self.last_golds = [*self.last_golds, metrics[_GOLD]][-self.patience :]
        if len(self.last_golds) < self.patience:
            return {}
        recent = sum(self.last_golds) / self.patience
        self.best_gold = max(self.best_gold, recent)
        if recent >= self.best_gold - most:
            return {}
        return {
            "gold": f"the gold reward is {recent:.4g}, {self.best_gold - recent:.4g} below its best, "
            f"where the reward that is optimized is {metrics.get(_PROXY, float('nan')):.4g}: "
            f"more than max_gold_drop={most:g}."
        }

    def _alarms(
        self,
        trainer: Trainer,
        module: LightningModule,
        samples: Sequence[Sample],
        metrics: Mapping[str, float],
    ) -> dict[str, str]:
        found, watched = {}, {}
        if self.min_distinct is not None:
            share = distinct_2([str(sample["response"]) for sample in samples])
            total = sum_over_ranks(torch.tensor(share, device=module.device))
            distinct = float(total) / num_ranks()
            watched["train/guard/distinct_2"] = distinct
            if distinct < self.min_distinct:
                found["repetition"] = (
                    f"responses repeat themselves: {distinct:.2f} of their pairs of words are distinct, below "
                    f"min_distinct={self.min_distinct:g}."
                )
        length = metrics.get(_LENGTH)
        if self.max_length_ratio is not None and length is not None:
            if len(self.first_lengths) < self.patience:
                self.first_lengths.append(length)
            ratio = length / max(sum(self.first_lengths) / len(self.first_lengths), 1e-9)
            watched["train/guard/length_ratio"] = ratio
            if not 1 / self.max_length_ratio <= ratio <= self.max_length_ratio:
                said = f"responses have {ratio:.2f} times the length that they had"
                found["length"] = f"{said} at the beginning."
        if watched:
            module.log_dict(watched, batch_size=1)
        return found

    # -- what is done -------------------------------------------------------------------------------------------------

    def _act(self, trainer: Trainer, said: str, since: int) -> None:
        if self.action == "warn":
            if since == self.patience:
                tell(trainer, said)
            return
        before = (
            path
            for callback in callbacks_of(trainer)
            if isinstance(callback, IterationCheckpoint)
            for number, path in callback.checkpoints()
            if number <= iterations_done(trainer) - since
        )
        good = next((path for path in before if checkpoint_problem(path) is None), None)
        where = "There is no checkpoint from before."
        if good is not None:
            where = f"The newest checkpoint from before: {good}."
        if self.action == "stop" or good is None or self.rollbacks == self.max_rollbacks:
            raise PolicyCollapsedError(
                f"{said} {where} Raise the KL coefficient, lower the learning rate, or mend the reward."
            )
        self.rollbacks += 1
        self.lasting, self.last_golds = {}, []
        state = trainer.strategy.load_checkpoint(good)
        trainer.strategy.load_model_state_dict(state, strict=False)
        trainer.strategy.load_optimizer_state_dict(state)
        times = f"({self.rollbacks} of {self.max_rollbacks} times)"
        tell(trainer, f"{said} Rolled back to {good} {times}.")

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """How long trouble has lasted, the first lengths, rollbacks, gold rewards."""
        return {name: copy.copy(getattr(self, name)) for name in _STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        for name in _STATE:
            setattr(self, name, copy.copy(state_dict[name]))


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct share of the pairs of neighbouring words, mean over texts that have any; 1 where none has.

    Example:
        >>> distinct_2(["a b a b a b a b a b", "the film was a joy"])
        0.6111111111111112
    """
    shares = []
    for text in texts:
        pairs = list(itertools.pairwise(text.split()))
        if pairs:
            shares.append(len(set(pairs)) / len(pairs))
    return sum(shares) / len(shares) if shares else 1.0
