"""What every module shares: building the backbone, optimizers, checkpoints that are small and complete."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import wraps
from typing import Any, Self

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_rlhf.distributed import sum_over_ranks
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.lightning import (
    callbacks_of,
    log_reduced,
    loss_scaler,
    save_before_peek,
    save_hyperparameters,
    sends_back,
    set_hyperparameters,
    without_inference_mode,
)
from lit_rlhf.models import Backbone, ModelSpec, divide, refuse_missing, shard
from lit_rlhf.models.cards import recorded_prompts
from lit_rlhf.modules.means import row_means
from lit_rlhf.modules.monitors import MonitorCheck
from lit_rlhf.modules.parts import (
    CHECKPOINT_KEY,
    CHECKPOINT_VERSION,
    arguments_of,
    check_kinds,
    describe,
    keep_readable,
    record_of,
    require_parts,
    require_weights,
    shapes_of,
    take_parts,
)
from lit_rlhf.modules.reference import Reference
from lit_rlhf.modules.refusals import (
    NotBuiltError,
    refuse_batch,
    refuse_callbacks,
    refuse_precision,
    refuse_undivided,
)
from lit_rlhf.modules.resumed import Resumption, refuse_other_servers, served, written_options
from lit_rlhf.modules.steps import (
    StepGuard,
    Steps,
    split_by_decay,
    undecayed_names,
)
from lit_rlhf.options import check_option, is_plain
from lit_rlhf.prompt_form import PromptForm, warn_of_prompts
from lit_rlhf.rewards import Reward
from lit_rlhf.seeding import stable_hash
from lit_rlhf.tokenizers import tokenizer_fingerprint

_STEPS = frozenset({"training_step", "validation_step", "test_step", "predict_step"})
_FACTORIES = {
    "optimizer": "a function of parameter groups that gives an optimizer, such as "
    "lambda groups: torch.optim.AdamW(groups, lr=1e-5)",
    "lr_scheduler": "a function of the optimizer that gives a schedule, such as "
    "lambda optimizer: WarmupCosine(optimizer, total_steps=1000)",
}


def _told_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step that says what a foreign loader lacks, and whose StopIteration is an error: to loops it ends the data."""

    @wraps(step)
    def run(self: LightningModule, *args: Any, **kwargs: Any) -> Any:
        try:
            return step(self, *args, **kwargs)
        except (AttributeError, KeyError, TypeError) as error:
            refuse_batch(type(self).__name__, args[0] if args else kwargs.get("batch"), error)
            raise
        except StopIteration as error:
            raise RuntimeError(
                f"{type(self).__name__}.{step.__name__} let a StopIteration out, as `next(...)` "
                "raises where nothing is "
                "left: in a reward, an engine or a loss, see the cause. Give `next` a default there."
            ) from error

    return run


class RLHFModule(LightningModule):
    """Base of the library's modules: one `Backbone`, one optimizer, checkpoints of the trainable weights.

    Args:
        backbone: The model and how it is loaded, quantized and adapted.
        optimizer: Called with parameter groups; default `torch.optim.AdamW` at the learning rate `default_lr` of the
            module.
        lr_scheduler: Called with the optimizer; stepped once per optimizer step. Default: a constant rate.
        seed: Seed of everything the module draws (rollouts, minibatch order, LoRA's dropout).
        steps: Which steps are not taken, and what decays; see `Steps`.
    """

    default_lr = 1e-5
    needs_lm_head = True
    """Whether log-probs are asked for; a head that is never used would be an unused parameter to DDP."""
    backbone: Backbone
    reference: Reference
    """Of modules that are held to one."""
    _arguments: set[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember which arguments the module was built with, which its base's constructor can't know.

        Raises:
            ConfigurationError: One is of another kind than its constructor says.
        """
        check_kinds(cls, args, kwargs)
        module = super().__new__(cls)
        object.__setattr__(module, "_arguments", arguments_of(cls, kwargs))
        return module

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _STEPS.intersection(vars(cls)):
            setattr(cls, name, _told_step(getattr(cls, name)))

    def __init__(
        self,
        backbone: ModelSpec,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
        steps: Steps | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        for name in self.hparams.keys() - self._arguments:  # a base class's, which weren't its own
            if not name.startswith("_"):  # Lightning's notes
                del self.hparams[name]
        self._parts = take_parts(self.hparams)
        self.spec = backbone
        for name, given in (("optimizer", optimizer), ("lr_scheduler", lr_scheduler)):
            valid = given is None or callable(given)
            check_option(valid, self, name, given, _FACTORIES[name])
        self.optimizer_factory = optimizer
        self.lr_scheduler_factory = lr_scheduler
        self.seed = seed
        self.steps = steps or Steps()
        self.guard = StepGuard(self.steps.max_skipped)
        self._undecayed: set[str] | None = None
        self.resumption = Resumption()
        self.of_no_row: set[str] = set()
        self.strict_loading = False  # checkpoints hold trainable weights alone; on_load_checkpoint checks completeness

    def save_hyperparameters(self, *args: Any, **options: Any) -> None:
        """Lightning's, without its copies of objects: of a client or a lock there can be none, of a model it is dear.

        Args:
            args: As Lightning's.
            options: As Lightning's.
        """
        save_hyperparameters(self, *args, **options)

    def _set_hparams(self, hp: Any) -> None:
        set_hyperparameters(self, hp, is_plain, describe)

    def __getattr__(self, name: str) -> Any:
        """Say why there is no backbone yet, to who asks a module that no Trainer has built.

        Raises:
            NotBuiltError: The model isn't loaded.
        """
        if name == "backbone" and name not in self._modules:
            raise NotBuiltError(type(self).__name__)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse an attribute of the name of a method: one of the two would be ignored.

        Methods, such as `loss`, are overridden; what is injected are options, kept under names of their own.

        Raises:
            ConfigurationError: Names both.
        """
        method = getattr(type(self), name, None)
        if inspect.isfunction(method) and not inspect.isroutine(value):
            raise ConfigurationError(
                f"{type(self).__name__} has a method {name} ({method.__qualname__}), and an attribute of that name is "
                f"set to a {type(value).__name__}: one of the two would be ignored. Give one of them another name."
            )
        super().__setattr__(name, value)

    # -- building -----------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the backbone on this process's device; called by Lightning before each stage, so idempotent."""
        if "backbone" in self._modules:
            return
        self.backbone = Backbone.load(self.spec, lm_head=self.needs_lm_head)
        self.configure_roles()
        self._undecayed = undecayed_names(self, decay_embeddings=self.steps.decay_embeddings)
        mesh = self.device_mesh
        if mesh is not None:
            models = [item for item in self.named_modules() if isinstance(item[1], Backbone)]
            for name, model in models:
                shard(model, mesh["data_parallel"], name)

    def configure_roles(self) -> None:
        """Add the adapters and heads that the module trains; a subclass's own parts belong here."""

    def setup(self, stage: str) -> None:
        """Refuse what would train wrongly, before any work starts."""
        self.resumption = Resumption()
        refuse_precision(self.trainer)
        if self.device_mesh is not None:
            without_inference_mode(self.trainer)

    def configure_callbacks(self) -> list[Callback]:
        """What looks after the names that other callbacks watch; asked before any callback or the data is set up."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            refuse_callbacks(self.trainer, self)
        if "backbone" not in self._modules:
            refuse_missing(self.spec)
        known = any(isinstance(callback, MonitorCheck) for callback in callbacks_of(self.trainer))
        return [] if known else [MonitorCheck()]

    def on_fit_start(self) -> None:
        """Compare the data with what the models read, and a checkpoint's options with the written ones."""
        self._check_tokenizer()
        form_of = getattr(getattr(self.trainer, "datamodule", None), "prompt_form", None)
        form: PromptForm | None = None if form_of is None else form_of()
        if form is not None:
            self.check_prompts(form)
            self.backbone.prompts = form  # which exports tell
        self.resumption.compare()

    def _check_tokenizer(self) -> None:
        theirs = getattr(getattr(self.trainer, "datamodule", None), "tokenizer_fingerprint", None)
        if theirs is not None and theirs != tokenizer_fingerprint(self.backbone.tokenizer):
            raise ConfigurationError(
                f"The data were tokenized with another tokenizer (data.init_args.tokenizer) than the model's "
                f"({self.spec.tokenizer or self.spec.name}): token ids would mean other words. "
                "Point both at the same directory."
            )

    def check_prompts(self, form: PromptForm) -> None:
        """Warn of models that have learned of prompts written otherwise than those of the data.

        Args:
            form: How those of the data are written.
        """
        warn_of_prompts(f"The model {self.spec.name!r}", self.backbone.prompts, form)
        for reward in (part for part in self.children() if isinstance(part, Reward)):
            reward.check_prompts(form)

    def require_movable_reference(self, alpha: float) -> None:
        """Refuse what can't be moved; `MovingReference` asks before the model is built."""
        self.reference.require_movable(self.spec, alpha, built="backbone" in self._modules)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout, the one thing that draws from torch's global generator."""
        if self.spec.lora is not None and self.spec.lora.dropout > 0.0:
            iteration = self.trainer.fit_loop.total_batch_idx
            torch.manual_seed(stable_hash(self.seed, iteration, "dropout", self.global_rank))

    # -- optimization -------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer; each has `params` and `name`. Only trainable parameters, in a fixed order."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "name": "model"}]

    def check_export(self) -> None:
        """Refuse what can't be written for other tools: asked before training, where an export is to end it."""

    def configure_optimizers(self) -> Any:
        """One optimizer over `parameter_groups`, with a schedule in optimizer steps where one is given."""
        optimizer, scheduler = self._make_optimizer_and_schedule()
        self.resumption.written = written_options(optimizer, scheduler)
        if scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _make_optimizer_and_schedule(self) -> tuple[Optimizer, LRScheduler | None]:
        groups = [group for group in self.parameter_groups() if group["params"]]
        if not groups:
            _ = self.backbone  # or say that it isn't there yet
            raise ConfigurationError(
                "Nothing to train: every parameter of the model is frozen. Add backbone.lora."
            )
        if self._undecayed is None:
            self._undecayed = undecayed_names(self, decay_embeddings=self.steps.decay_embeddings)
        # By name, for FSDP1 leaves parameters flat by now.
        spared = {
            id(parameter)
            for name, parameter in self.named_parameters()
            if name.replace("_fsdp_wrapped_module.", "") in self._undecayed
        }
        optimizer = self._make_optimizer(
            part for group in groups for part in split_by_decay(group, spared)
        )
        check_option(
            isinstance(optimizer, Optimizer), self, "optimizer", optimizer, _FACTORIES["optimizer"]
        )
        if self.lr_scheduler_factory is None:
            return optimizer, None
        scheduler = self.lr_scheduler_factory(optimizer)
        check_option(
            isinstance(scheduler, LRScheduler),
            self,
            "lr_scheduler",
            scheduler,
            _FACTORIES["lr_scheduler"],
        )
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ConfigurationError(
                f"lr_scheduler={type(scheduler).__name__} waits for a metric, and schedules here are stepped with each "
                "optimizer step, which has none. Use a schedule by steps, such as WarmupCosine of lit_rlhf.modules."
            )
        return optimizer, scheduler

    def _make_optimizer(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        if self.optimizer_factory is not None:
            return self.optimizer_factory(groups)
        groups = list(groups)
        on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
        return torch.optim.AdamW(
            groups,
            lr=self.default_lr,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            # A fused step unscales by itself, and then Lightning refuses `gradient_clip_val`. None leaves it to torch.
            fused=True if on_gpu and loss_scaler(self) is None else None,
        )

    def on_train_start(self) -> None:
        """Give a restored optimizer the options that are written now; refuse batches that aren't divided."""
        refuse_undivided(self.trainer)
        self.resumption.finish(self.trainer, self._make_optimizer_and_schedule)

    def log_rows(self, stage: str, metrics: Mapping[str, Tensor]) -> None:
        """Log means of metrics, (B,) each, over the rows of all processes that they concern; of no row none is."""
        means = row_means(metrics, sum_over_ranks)
        self.of_no_row |= {f"{stage}/{name}" for name in metrics.keys() - means.keys()}
        for name, (mean, count) in means.items():
            log_reduced(self, f"{stage}/{name}", mean, count)

    def on_after_backward(self) -> None:
        """Divide what frozen models have left whole for the logits that a loss compares."""
        if self.device_mesh is not None:
            divide(self)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def on_fit_end(self) -> None:
        """Of processes that a script or a notebook has started, let the first hand back the module's own state too."""
        if sends_back(self.trainer):
            self.register_state_dict_post_hook(RLHFModule._add_own_state)

    def _add_own_state(self, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
        trained = self.trainable_names()
        kept = {name: state_dict[f"{prefix}{name}"] for name in trained}
        state_dict.clear()
        state_dict |= kept | {CHECKPOINT_KEY: self._own_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of any module; one that isn't loaded yet is loaded first, so that no weight is passed over.

        Args:
            state_dict: Weights by name.
            args: As torch's.
            kwargs: As torch's.
        """
        self.configure_model()
        weights = dict(state_dict)
        own = weights.pop(CHECKPOINT_KEY, None)
        found = super().load_state_dict(weights, *args, **kwargs)
        if own is not None:
            self._take_own_state(own)
        return found

    def _own_state(self) -> dict[str, Any]:
        return {
            "prompts": asdict(self.backbone.prompts) if self.backbone.prompts else None,
            "state": self.extra_state() | {"guard": self.guard.state_dict()},
        }

    def _take_own_state(self, own: Mapping[str, Any]) -> None:
        self.backbone.prompts = recorded_prompts(own)
        self.guard.load_state_dict(own["state"]["guard"])
        self.load_extra_state(own["state"])

    def trainable_names(self) -> list[str]:
        """Names of the weights a checkpoint must hold: what is trained, a reference that moves, what rewards count."""
        parameters = dict(self.named_parameters())
        trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
        moved = self.reference.names(parameters) if hasattr(self, "reference") else []
        counted = [
            f"{place}.{name}"
            for place, part in self.named_modules()
            if isinstance(part, Reward)
            for name, _ in part.named_buffers(recurse=False)
        ]
        return [*trained, *moved, *counted]

    def extra_state(self) -> dict[str, Any]:
        """State beside weights that a checkpoint must hold: plain numbers, strings, lists, dicts and tensors."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `extra_state` gave."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trainable weights and the module's own state."""
        trainable = set(self.trainable_names())
        checkpoint["state_dict"] = {
            k: v for k, v in checkpoint["state_dict"].items() if k in trainable
        }
        checkpoint[CHECKPOINT_KEY] = {
            "class": type(self).__qualname__,
            "optimizer": self.resumption.written,
            "parts": self._parts | take_parts(checkpoint.get("hyper_parameters", {})),
            "served": served(self),
            "shapes": shapes_of(checkpoint["state_dict"].items()),
            "version": CHECKPOINT_VERSION,
            **self._own_state(),
        }
        if self._trainer is not None:
            save_before_peek(self.trainer, checkpoint)
        keep_readable(checkpoint)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Lightning's; of a module that was built in Python, its parts must be passed.

        Args:
            checkpoint_path: A file that Lightning wrote.
            args: As Lightning's.
            kwargs: As Lightning's: what is given here takes the place of what the checkpoint holds.

        Raises:
            ConfigurationError: Names the parts that are missing, with the options they had.
        """
        require_parts(checkpoint_path, cls.__qualname__, kwargs)
        with warnings.catch_warnings():  # of frozen weights; on_load_checkpoint misses the others
            warnings.filterwarnings("ignore", message="Found keys that are in the model state dict")
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def check_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Whether the module can go on from a checkpoint, before anything of it is loaded.

        Raises:
            CheckpointError: It is of another class, layout, model or optimizer.
        """
        ours = record_of(checkpoint, type(self).__qualname__)
        self.configure_model()
        # Where FSDP2 has loaded them, the weights are no longer in the checkpoint.
        weights = checkpoint.get("state_dict")
        found = ours["shapes"] if weights is None else shapes_of(weights.items())
        shapes = shapes_of([*self.named_parameters(), *self.named_buffers()])
        require_weights(found, self.trainable_names(), shapes)
        self.resumption.check(ours.get("optimizer", {}))
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            refuse_other_servers(ours.get("served", {}), served(self))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this class and complete, then restore the module's own state."""
        self.check_checkpoint(checkpoint)
        ours = checkpoint[CHECKPOINT_KEY]
        self._take_own_state(ours)
        self.resumption.restore(ours.get("optimizer", {}), checkpoint.get("lr_schedulers", []))
