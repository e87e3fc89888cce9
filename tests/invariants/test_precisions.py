"""Precision x module x engine: the first loss is float32's within the rounding, or refused before work."""

import itertools
import math
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.connector import _PRECISION_INPUT
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import (
    BitsandbytesPrecision,
    HalfPrecision,
    MixedPrecision,
    TransformerEnginePrecision,
)
from torch import Tensor
from torch.utils.data import DataLoader

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.lightning import loss_scaler
from lit_rlhf.models import LoraSpec, ModelSpec, ValueHead, ValueModel
from lit_rlhf.modules import (
    GRPOPolicyModule,
    PolicyModule,
    PPOPolicyModule,
    PreferenceModule,
    RewardModelModule,
    RLHFModule,
    SupervisedModule,
    Updates,
)
from lit_rlhf.objectives import DPO, KTO, TokenMean
from lit_rlhf.rollout import HFEngine, NativeEngine, Sampling
from lit_rlhf.types import Generation
from tests.tolerances import PRECISIONS
from tests.unit.modules.one_iteration import TokenReward, text_batch
from tests.unit.modules.policies import make_trainer, prompt_batch
from tests.unit.modules.test_preference import batch_of, singles

NAMES = sorted(
    {name for kind in typing.get_args(_PRECISION_INPUT) for name in map(str, typing.get_args(kind))}
)
"""What Lightning's Trainer takes for `precision`, aliases too."""


def fp16_on_cpu() -> MixedPrecision:
    """float16 with a loss scale: by name Lightning takes bfloat16 instead on CPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))


def transformer_engine(name: str) -> TransformerEnginePrecision:
    """The plugin as it is where its library is installed, which wants a GPU to be built."""
    plugin = TransformerEnginePrecision.__new__(TransformerEnginePrecision)
    plugin.precision = name  # type: ignore[assignment]
    plugin.weights_dtype = torch.bfloat16
    return plugin


SCALED = "16-mixed, scaled"
COMPUTED = list(PRECISIONS)
SLOW = {"32-true", "16-mixed"}
REFUSED: dict[str, Callable[[], dict[str, Any]]] = {
    "bf16-true": lambda: {"precision": "bf16-true"},
    "16-true": lambda: {"precision": "16-true"},
    "a half plugin": lambda: {"plugins": [HalfPrecision("bf16-true")]},
    "transformer-engine": lambda: {"plugins": [transformer_engine("transformer-engine")]},
    "transformer-engine-float16": lambda: {
        "plugins": [transformer_engine("transformer-engine-float16")]
    },
}
QUANTIZING = ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "int8-training")
ALIASES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


@dataclass
class First(Callback):
    """The first step: its loss, norm, and what was sampled for it."""

    loss: float = math.nan
    grad_norm: float = math.nan
    kept: list[Generation] = field(default_factory=list)
    dtypes: set[torch.dtype] = field(default_factory=set)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        if math.isnan(self.loss):
            scaler = loss_scaler(pl_module)
            self.loss = float(loss.detach()) / (1.0 if scaler is None else scaler.get_scale())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.grad_norm = float(trainer.callback_metrics["train/grad_norm"])
        self.dtypes = {p.dtype for p in pl_module.parameters() if p.is_floating_point()}


def policy(kind: type[PolicyModule], engine: type[NativeEngine] | type[HFEngine]) -> Any:
    def make(spec: ModelSpec) -> RLHFModule:
        options: dict[str, Any] = {
            "engine": engine(),
            "sampling": Sampling(max_new_tokens=6, stop_token_ids=list(range(100))),
            "updates": Updates(epochs=1, microbatch_tokens=100_000),
        }
        if kind is PPOPolicyModule:
            options["value"] = ValueModel(spec) if spec.lora is None else ValueHead()
        else:
            options["reduction"] = TokenMean()  # else the advantages of a group add up to nothing
        return kind(spec, TokenReward(), **options)

    return make


MODULES: dict[str, Callable[[ModelSpec], RLHFModule]] = {
    "sft": SupervisedModule,
    "rm": RewardModelModule,
    "dpo": lambda spec: PreferenceModule(spec, DPO(0.1)),
    "kto": lambda spec: PreferenceModule(spec, KTO()),
    "ppo-native": policy(PPOPolicyModule, NativeEngine),
    "ppo-hf": policy(PPOPolicyModule, HFEngine),
    "grpo-native": policy(GRPOPolicyModule, NativeEngine),
    "grpo-hf": policy(GRPOPolicyModule, HFEngine),
}
LORA = {"full": {}, "lora": {"lora": LoraSpec(rank=4, dropout=0.0)}}


def data(name: str, model_dir: Path) -> Any:
    if name == "sft":
        return text_batch(model_dir)
    if name == "kto":
        return singles(label=torch.tensor([True, False, True, False]))
    return prompt_batch(model_dir) if name.startswith(("ppo", "grpo")) else batch_of()


def first_step(
    name: str,
    model_dir: Path,
    kind: str = "full",
    replayed: Generation | None = None,
    **options: Any,
) -> First:
    """One training step by a Trainer; of a policy, on completions that were sampled elsewhere where they are given."""
    module = MODULES[name](ModelSpec(name=str(model_dir), dtype="float32", **LORA[kind]))
    first = First()
    if isinstance(module, PolicyModule):
        engine: Any = module.engine
        generate = engine.generate

        def keep(*args: Any, **kwargs: Any) -> Generation:
            first.kept.append(replayed or generate(*args, **kwargs))
            return first.kept[-1]

        engine.generate = keep
    trainer = make_trainer(callbacks=[first], limit_val_batches=0, **options)
    trainer.fit(module, DataLoader([data(name, model_dir)], batch_size=None))
    return first


def options_of(precision: str) -> dict[str, Any]:
    return {"plugins": [fp16_on_cpu()]} if precision == SCALED else {"precision": precision}


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    assert torch.get_default_dtype() == before


def walks() -> Iterator[Any]:
    for kind, precision, name in itertools.product(LORA, COMPUTED, MODULES):
        fast = precision not in SLOW and (kind == "full" or name == "sft")
        yield pytest.param(kind, precision, name, marks=[] if fast else pytest.mark.slow)


@pytest.mark.filterwarnings("ignore:You passed .*precision='16-mixed'")  # then bfloat16 is taken
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize(("kind", "precision", "name"), list(walks()))
def test_first_losses_and_gradients(
    kind: str, precision: str, name: str, tiny_model_dir: Path
) -> None:
    step = first_step(name, tiny_model_dir, kind, **options_of(precision))
    sampled = replace(step.kept[0], logprobs=None, values=None) if step.kept else None
    single = first_step(name, tiny_model_dir, kind, sampled, precision="32-true")
    off = PRECISIONS[precision]
    assert single.grad_norm > 1e-3
    assert step.loss == pytest.approx(single.loss, rel=off["rel"], abs=off["abs"])
    assert step.grad_norm == pytest.approx(single.grad_norm, rel=off["norm"])
    assert (torch.float64 in step.dtypes) == (precision == "64-true")
    assert step.dtypes <= {torch.float32, torch.float64}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("precision", REFUSED)
def test_what_casts_heads_and_adapters_is_refused_before_a_model_is_loaded(
    precision: str, name: str, tiny_model_dir: Path
) -> None:
    module = MODULES[name](ModelSpec(name=str(tiny_model_dir)))
    trainer = make_trainer(**REFUSED[precision]())
    loader = DataLoader([data(name, tiny_model_dir)], batch_size=None)
    assert_refused(trainer, module, loader)


@pytest.mark.parametrize("name", MODULES)
def test_quantization_of_heads_and_adapters_is_refused(name: str, tiny_model_dir: Path) -> None:
    module = MODULES[name](ModelSpec(name=str(tiny_model_dir)))
    loader = DataLoader([data(name, tiny_model_dir)], batch_size=None)
    for mode in QUANTIZING:
        trainer = make_trainer()
        # Lightning takes this plugin with a GPU alone.
        trainer.strategy._precision_plugin = BitsandbytesPrecision(mode)
        assert_refused(trainer, module, loader)


def assert_refused(trainer: Trainer, module: RLHFModule, loader: DataLoader[Any]) -> None:
    for run in (trainer.fit, trainer.predict):
        with pytest.raises(ConfigurationError, match=r"model\.init_args\.backbone\..*\.$"):
            run(module, loader)
    assert "backbone" not in module._modules


def test_every_precision_of_the_trainer_is_walked_or_refused() -> None:
    assert {ALIASES.get(name, name) for name in NAMES} <= {*COMPUTED, *REFUSED}
