"""What is refused before work starts: options that contradict each other, and what a Trainer would do wrongly."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins import BitsandbytesPrecision, TransformerEnginePrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data.distributed import DistributedSampler

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.internals.lightning import (
    is_dry_run,
    lacks_rate_of,
    saves_every_n_steps,
    step_in_each_batch,
)
from lit_rlhf.modules.steps import Updates
from lit_rlhf.objectives import ImportanceCorrection, Surrogate
from lit_rlhf.rollout import RolloutEngine, Sampling
from lit_rlhf.types import EstimatedRollout, EvaluatedRollout, Rollout

_LAYOUT = ("input_ids", "branch_ids", "position_ids", "index")
_HALF = ("bf16-true", "16-true")


class NotBuiltError(ConfigurationError, AttributeError):
    """A module was asked for its model before that was loaded.

    Args:
        module: Its class.
    """

    def __init__(self, module: str) -> None:
        super().__init__(
            f"The model of this {module} is not loaded yet. A Trainer does so; without one call configure_model() "
            "first."
        )


def refuse_batch(module: str, batch: Any, cause: Exception) -> None:
    """Say of a batch that no loader of this library made what it lacks; nothing where that isn't the cause.

    Args:
        module: The module's class.
        batch: What its step was given.
        cause: What was raised by it.

    Raises:
        DataError: It is no dictionary, or has not the keys of a branched batch.
    """
    keys = sorted(map(str, batch)) if isinstance(batch, Mapping) else []
    missing = [name for name in _LAYOUT if name not in keys]
    if not missing or (keys and not {*cause.args}.intersection(missing)):
        return
    what = f"a batch with the keys {keys}" if keys else f"a batch that is a {type(batch).__name__}"
    raise DataError(
        f"{module} was given {what}, without {', '.join(missing)}. It takes the batches of this library's data modules "
        "(PreferenceDataModule and others): dictionaries with the branches of a prompt in one row. Leave out "
        "layout: rows, which is for other people's models; rows of your own go into a data module as "
        "RowsSource(rows)."
    ) from cause


def refuse_sampling(sampling: Sampling) -> None:
    """Refuse rollouts from another distribution than the one whose log-probs the loss uses."""
    if sampling.top_p < 1.0 or sampling.top_k > 0:
        raise ConfigurationError(
            f"sampling.top_p={sampling.top_p}, sampling.top_k={sampling.top_k}: rollouts must come from the whole "
            "distribution, for that is the one whose log-probs the loss uses. Set them in eval_sampling instead."
        )
    if sampling.temperature <= 0:
        raise ConfigurationError(
            f"sampling.temperature={sampling.temperature}: greedy rollouts explore nothing and have no log-probs. "
            "Use a temperature above 0 (1.0 samples the policy itself)."
        )
    if sampling.min_new_tokens > 0:
        raise ConfigurationError(
            f"sampling.min_new_tokens={sampling.min_new_tokens} forbids tokens that the loss "
            "counts with. Reward length "
            "instead, or set it in eval_sampling."
        )


def refuse_logprobs(
    engine: RolloutEngine, correction: ImportanceCorrection | None, *, recompute: bool
) -> None:
    """Refuse log-probs of other kernels where the loss takes them for a training forward's."""
    if not engine.own_arithmetic and not recompute:
        raise ConfigurationError(
            f"{type(engine).__name__} samples with kernels of its own, whose log-probs are not those of a training "
            "forward: the first ratio would not be 1. Set recompute_logprobs: true; importance_correction: "
            "TruncatedImportance then corrects for what it sampled from."
        )
    if engine.staleness > 0 and correction is None:
        raise ConfigurationError(
            f"{type(engine).__name__}(staleness={engine.staleness}) gives samples of earlier weights, which a loss "
            "would take for the policy's own. Set importance_correction: TruncatedImportance and recompute_logprobs: "
            "true. A module without these options trains on its own samples alone: leave Ahead out."
        )
    if correction is not None and not recompute:
        raise ConfigurationError(
            f"importance_correction={type(correction).__name__} compares the engine's log-probs with those of a "
            "training forward, which recompute_logprobs=False does without: all weights would be 1. Set "
            "recompute_logprobs: true, or leave importance_correction out."
        )


def require_logprobs(
    rollout: Rollout, engine: RolloutEngine, correction: ImportanceCorrection
) -> Tensor:
    """(N, T): the engine's log-probs, which a correction compares with.

    Raises:
        ConfigurationError: The engine gives none.
    """
    found = rollout.completions.logprobs
    if found is None:
        raise ConfigurationError(
            f"{type(engine).__name__} gives no log-probs of what it samples, so importance_correction="
            f"{type(correction).__name__} has nothing to compare with. Leave it out, or use NativeEngine."
        )
    return found


def refuse_advantages(module: LightningModule, rollout: EvaluatedRollout) -> None:
    """Refuse advantages that are nan or infinite though all that they are made of is finite.

    Else each step would be skipped, as after an overflow, until `max_skipped` ends the run.
    """
    if not isinstance(rollout, EstimatedRollout):
        return
    mask = rollout.response_mask
    bad = (~torch.isfinite(rollout.advantages) & mask).any(-1)
    given = torch.stack([rollout.old_logprobs, rollout.ref_logprobs])[:, mask]
    if bad.any() and bool(torch.isfinite(given).all()):
        first = int(bad.nonzero()[0])
        prompt, place = divmod(first, rollout.num_samples)
        raise ConfigurationError(
            f"{type(getattr(module, 'advantage', module)).__name__} made advantages that are not finite for "
            f"{int(bad.sum())} of {len(bad)} completions; the first: completion {place} of prompt {prompt} of the "
            f"batch, with the score {float(rollout.scores.total[first]):g}. Scores and log-probs are finite, so "
            "look for a division by 0 there, such as by the deviation of equal scores: add a small number to it."
        )


def refuse_updates(updates: Updates, surrogate: Surrogate) -> None:
    """Refuse more steps per rollout than the surrogate is right for."""
    if surrogate.on_policy_only and updates.per_iteration > 1:
        raise ConfigurationError(
            f"{type(surrogate).__name__} is right for one optimizer step per rollout; updates.epochs={updates.epochs} "
            f"and updates.minibatches={updates.minibatches} take {updates.per_iteration}. Set both to 1, or use "
            "ClippedSurrogate."
        )


def refuse_precision(trainer: Trainer) -> None:
    """Refuse precisions that change the weights: of them only those of the base may be of another dtype.

    Plugins are asked what they are, for one of bitsandbytes calls itself "32-true".
    """
    plugin = trainer.precision_plugin
    if isinstance(plugin, BitsandbytesPrecision):
        raise ConfigurationError(
            "trainer.plugins: BitsandbytesPrecision swaps the linear layers of everything, heads and adapters too, and "
            "trains on what it rounded. Leave it out and set "
            "model.init_args.backbone.quantization: nf4 (or fp4, int8), "
            "with model.init_args.backbone.lora."
        )
    if isinstance(plugin, TransformerEnginePrecision) or str(plugin.precision) in _HALF:
        raise ConfigurationError(
            f"trainer.precision={str(plugin.precision)!r} casts heads, adapters and running statistics to half "
            "precision. Set model.init_args.backbone.dtype: bfloat16 (weights of the base) and trainer.precision: "
            "32-true instead."
        )


def refuse_automatic_options(trainer: Trainer, module: LightningModule) -> None:
    """Refuse of a policy, which steps by itself, what belongs to Lightning's steps.

    Lightning refuses both too, and names as the way out an automatic optimization that policies can't have.
    """
    name = type(module).__name__
    for option in ("gradient_clip_val", "gradient_clip_algorithm"):
        if (clip := getattr(trainer, option)) is not None:
            raise ConfigurationError(
                f"trainer.{option}={getattr(clip, 'value', clip)}: {name} steps its optimizer itself and clips there. "
                "Remove it, and set model.updates.max_grad_norm."
            )
    if trainer.accumulate_grad_batches != 1:
        raise ConfigurationError(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: {name} sums gradients over "
            "microbatches itself. Remove it, and set model.updates.microbatch_tokens (memory), "
            "model.updates.minibatches (optimizer steps per pass) or data.batch_size."
        )


def refuse_idle_options(trainer: Trainer) -> None:
    """Refuse options of a run that Lightning takes without a word, and that do nothing.

    Args:
        trainer: Of the run.
    """
    how = trainer.gradient_clip_algorithm
    if how is not None and trainer.gradient_clip_val is None:
        raise ConfigurationError(
            f"trainer.gradient_clip_algorithm={how.value} says how to clip to trainer.gradient_clip_val, which isn't "
            "given: nothing would be clipped. Give both, or neither."
        )
    if is_dry_run(trainer):  # whose ends are its own
        return
    for unit in ("epochs", "steps"):
        least, most = getattr(trainer, f"min_{unit}"), getattr(trainer, f"max_{unit}")
        if most == 0:
            raise ConfigurationError(
                f"trainer.max_{unit}=0 trains nothing. Give 1 or more, or leave it out; --trainer.fast_dev_run 1 tries "
                "whether a configuration runs."
            )
        if least is not None and most is not None and 0 < most < least:
            raise ConfigurationError(
                f"trainer.min_{unit}={least} is never reached: trainer.max_{unit}={most} ends the run before. Raise "
                f"max_{unit}, or leave min_{unit} out."
            )


def refuse_callbacks(trainer: Trainer, module: LightningModule) -> None:
    """Refuse callbacks of Lightning that would do nothing, or something else than asked.

    Args:
        trainer: Of the run.
        module: That it trains.
    """
    name = type(module).__name__
    for each in getattr(trainer, "callbacks", []):
        if isinstance(each, WeightAveraging | StochasticWeightAveraging):
            raise ConfigurationError(
                f"{type(each).__name__} averages a copy of the whole module: the frozen base too, or, where it copies "
                "before the model is loaded, nothing; and a run can't go on from its checkpoints. Remove it from "
                "trainer.callbacks; checkpoints hold trained weights alone, and those of several iterations can be "
                "averaged after the run."
            )
        if isinstance(each, BaseFinetuning | ModelPruning):
            raise ConfigurationError(
                f"{type(each).__name__} looks for layers before the model of {name} is loaded, and finds none; what it "
                "freezes, adds or masks later would be missing in checkpoints and exports. Remove it from "
                "trainer.callbacks. What is trained is an option (backbone.lora), or set in configure_roles of a class "
                "of your own."
            )
        if isinstance(each, GradientAccumulationScheduler) and not module.automatic_optimization:
            raise ConfigurationError(
                f"GradientAccumulationScheduler: {name} sums gradients over microbatches itself. Remove it from "
                "trainer.callbacks, and set model.updates.microbatch_tokens (memory), model.updates.minibatches "
                "(optimizer steps per pass) or data.batch_size."
            )
        if isinstance(each, LearningRateFinder) and not module.automatic_optimization:
            raise ConfigurationError(
                f"LearningRateFinder (Tuner.lr_find) reads a loss after each optimizer step, and {name} takes several "
                "within an iteration and gives samples. Compare short runs with other rates by what they score."
            )
        if isinstance(each, LearningRateFinder) and lacks_rate_of(each, module):
            raise ConfigurationError(
                f"LearningRateFinder (Tuner.lr_find) would set an attribute lr, and the rate of {name} is that of its "
                "option optimizer. Ask with update_attr=False, and give what its suggestion() says as "
                "optimizer=lambda groups: torch.optim.AdamW(groups, lr=...)."
            )


def refuse_trainer_options(trainer: Trainer, stage: str, per_iteration: int) -> None:
    """Refuse strategies that break manual optimization, and what counts steps where iterations are meant.

    Args:
        trainer: Of the run.
        stage: What it is to do.
        per_iteration: Optimizer steps of an iteration.
    """
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        raise ConfigurationError(
            f"trainer.strategy={type(strategy).__name__} can't run several optimizer steps within a training step "
            "(Lightning issues 19685, 20138): gradients would be lost in silence. Use ddp or fsdp2."
        )
    if stage != "fit":
        return
    if is_dry_run(trainer):
        step_in_each_batch(trainer, per_iteration)
    elif trainer.max_steps not in (-1, 0, None):  # of 0 there is nothing to count
        raise ConfigurationError(
            f"trainer.max_steps={trainer.max_steps} counts optimizer steps, of which an iteration has {per_iteration}. "
            "Set trainer.max_epochs or trainer.limit_train_batches, or add StopAfter(iterations=...) to "
            "trainer.callbacks (--trainer.callbacks+ StopAfter --trainer.callbacks.iterations N)."
        )
    for callback in getattr(trainer, "checkpoint_callbacks", []):
        every = saves_every_n_steps(callback)
        if every and per_iteration > 1:
            raise ConfigurationError(
                f"ModelCheckpoint(every_n_train_steps={every}) counts optimizer steps and looks at them between "
                f"iterations, each of {per_iteration} steps, so it would save at other times than it says. Use "
                "IterationCheckpoint(every_n_iterations=...), or every_n_epochs."
            )


def refuse_undivided(trainer: Trainer) -> None:
    """Refuse batches that all processes would train on: those of a loader that was made before there were several.

    A DataModule divides its rows by its Trainer; Lightning leaves our samplers as they are.
    """
    options = trainer.distributed_sampler_kwargs
    if options is None or options["num_replicas"] == 1:
        return
    for loader in CombinedLoader(trainer.train_dataloader, "sequential").flattened:
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, DistributedSampler) and sampler.num_replicas == 1:
            raise ConfigurationError(
                f"trainer.fit was given a loader whose rows are not divided among the {options['num_replicas']} "
                "processes: each would train on the same batches. Give it the DataModule itself: "
                "trainer.fit(module, data)."
            )


def refuse_own_optimizers(trainer: Trainer) -> None:
    """Refuse what a `configure_optimizers` of one's own may give and policies, which step by hand, would not heed."""
    count = sum(bool(each.param_groups) for each in trainer.optimizers)  # for None a stand-in
    schedules = trainer.lr_scheduler_configs
    if count != 1:
        raise ConfigurationError(
            f"configure_optimizers gave {count} optimizers, and a policy steps one. Make groups of parameters "
            "with options of their own in it: override parameter_groups."
        )
    for each in schedules:
        often = each.interval == "step" and each.frequency == 1
        waits = isinstance(each.scheduler, ReduceLROnPlateau)
        if not often or waits or len(schedules) > 1:
            raise ConfigurationError(
                f"configure_optimizers gave {len(schedules)} schedule(s), {type(each.scheduler).__name__} with "
                f"interval={each.interval!r} and frequency={each.frequency}, and a policy steps one, once with each "
                "optimizer step. Give one that counts these, as {'scheduler': ..., 'interval': 'step'}, or the "
                "option lr_scheduler."
            )


def refuse_open_estimate(module: LightningModule, inherited: Callable[..., object]) -> None:
    """Refuse a policy whose `estimate` is the one that is left to subclasses."""
    if getattr(type(module), "estimate", None) is inherited:
        raise ConfigurationError(
            f"{type(module).__name__} must override estimate(rollout): see Your own algorithm in the docs."
        )
