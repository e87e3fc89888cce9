"""`load_from_checkpoint` of modules built in Python: what it asks for, and that it gives the module back."""

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_rlhf.data import PromptDataModule, RowsSource, Source
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import LoraSpec, ModelSpec, ValueHead
from lit_rlhf.modules import (
    DrGRPOPolicyModule,
    OnlineDPOPolicyModule,
    PolicyModule,
    PPOPolicyModule,
    PreferenceModule,
    REBELPolicyModule,
    Updates,
)
from lit_rlhf.objectives import DPO
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import Sampling
from lit_rlhf.testing import tiny_prompts
from tests.unit.modules.policies import CountVowels, fit, make_ppo, make_trainer


def spec_of(model_dir: Path) -> ModelSpec:
    return ModelSpec(name=str(model_dir), lora=LoraSpec(rank=4))


def test_a_loss_and_its_options_are_asked_for(tiny_model_dir: Path, tmp_path: Path) -> None:
    module = PreferenceModule(spec_of(tiny_model_dir), loss=DPO(beta=0.7), seed=3)
    file = tmp_path / "dpo.ckpt"
    module.configure_model()
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(file)
    with pytest.raises(
        ConfigurationError, match=r"backbone=ModelSpec\(name=.*loss=DPO\(.*beta=0\.7"
    ):
        PreferenceModule.load_from_checkpoint(file)
    with pytest.raises(ConfigurationError, match=r"had: loss=DPO\(.*beta=0\.7"):
        PreferenceModule.load_from_checkpoint(file, backbone=module.spec)
    loaded = PreferenceModule.load_from_checkpoint(file, backbone=module.spec, loss=DPO(beta=0.7))
    assert loaded.seed == 3
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert trained
    for name, parameter in loaded.named_parameters():
        if name in trained:
            assert_close(parameter, trained[name], rtol=0, atol=0)


def test_a_policy_is_given_back_with_its_parts(tiny_model_dir: Path, tmp_path: Path) -> None:
    module = make_ppo(tiny_model_dir)
    file = tmp_path / "ppo.ckpt"
    fit(module, tiny_model_dir, limit_train_batches=1).save_checkpoint(file)
    with pytest.raises(
        ConfigurationError, match=r"CountVowels.*sampling=Sampling.*updates=Updates"
    ):
        PPOPolicyModule.load_from_checkpoint(file)
    loaded = PPOPolicyModule.load_from_checkpoint(
        file,
        backbone=spec_of(tiny_model_dir),
        reward=CountVowels(),
        sampling=Sampling(max_new_tokens=6),
        value=ValueHead(),
        updates=Updates(epochs=2, minibatches=2),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    )
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for name, parameter in loaded.named_parameters():
        if name in trained:
            assert_close(parameter, trained[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", [REBELPolicyModule, OnlineDPOPolicyModule, DrGRPOPolicyModule])
def test_what_a_class_hands_on_to_its_base_is_not_asked_for(
    kind: type[PolicyModule], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """As it can't be given: REBEL has its own reduction, and takes none."""
    given: dict[str, Any] = {"backbone": spec_of(tiny_model_dir), "reward": CountVowels()}
    module = kind(**given, sampling=Sampling(max_new_tokens=4), num_samples=4, seed=5)
    file = tmp_path / "policy.ckpt"
    fit(module, tiny_model_dir, limit_train_batches=1).save_checkpoint(file)
    given["sampling"] = Sampling(max_new_tokens=4)
    loaded = kind.load_from_checkpoint(file, **given)
    assert (loaded.seed, loaded.num_samples) == (5, 4)
    assert set(loaded.hparams) >= {"num_samples", "seed"}


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            lambda: PreferenceModule("a/model"),  # type: ignore[arg-type]
            r"PreferenceModule\(backbone='a/model'\): .* a ModelSpec. .* ModelSpec\(name=",
        ),
        (
            lambda: PreferenceModule(ModelSpec("a/model"), loss=DPO),  # type: ignore[arg-type]
            r"loss must be a PreferenceLoss. This is the class; give one of it: DPO\(\.\.\.\)",
        ),
        (
            lambda: DrGRPOPolicyModule(ModelSpec("a/model"), len),  # type: ignore[arg-type]
            r"reward must be a Reward. Of a function it is FunctionReward",
        ),
        (
            lambda: DrGRPOPolicyModule(
                ModelSpec("a/model"), CountVowels(), sampling={"max_new_tokens": 4}
            ),
            r"sampling must be a Sampling",
        ),
    ],
)
def test_parts_of_another_kind_are_refused_at_once(build: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        build()


class OwnPolicy(PPOPolicyModule):
    """Saves its options as Lightning's documentation does, and has one of a class that a checkpoint can't hold."""

    def __init__(self, backbone: ModelSpec, reward: Reward, logs: Path, **kwargs: Any) -> None:
        super().__init__(backbone, reward, **kwargs)
        self.save_hyperparameters()
        self.logs = logs


class OwnData(PromptDataModule):
    """Has its rows as an object."""

    def __init__(self, own: object, model: str) -> None:
        super().__init__(RowsSource(tiny_prompts(8)), tokenizer=model, batch_size=4)
        self.own = own


@pytest.mark.filterwarnings("ignore:Attribute .* removed from hparams")  # as by Lightning alone
def test_checkpoints_of_own_classes_and_numbers_of_numpy_are_read_again(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = str(tiny_model_dir)

    def make() -> OwnPolicy:
        return OwnPolicy(
            spec_of(tiny_model_dir),
            CountVowels(),
            tmp_path,
            sampling=Sampling(max_new_tokens=4),
            updates=Updates(epochs=1),
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=np.logspace(-4, -3, 2)[0]),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: np.cos(0.1 * step)
            ),
        )

    trainer = make_trainer()
    trainer.fit(make(), OwnData(object(), model))
    file = tmp_path / "own.ckpt"
    trainer.save_checkpoint(file)
    resumed, module = make_trainer(max_epochs=2), make()
    resumed.fit(module, OwnData(object(), model), ckpt_path=file)
    assert resumed.global_step == 4
    assert module.hparams["logs"] == tmp_path
    with pytest.raises(ConfigurationError, match=r"reward=CountVowels.*logs=PosixPath"):
        OwnPolicy.load_from_checkpoint(file)


class Uncopied(CountVowels):
    """Holds what can't be copied, as clients of services do."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class LockedSource(Source):
    """Rows behind a lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def load(self) -> list[dict[str, str]]:
        with self.lock:
            return tiny_prompts(4)


@pytest.mark.filterwarnings("ignore:Attribute .* removed from hparams")  # as by Lightning alone
def test_objects_of_ones_own_are_not_copied(tiny_model_dir: Path, tmp_path: Path) -> None:
    reward, model = Uncopied(), str(tiny_model_dir)
    module = OwnPolicy(spec_of(tiny_model_dir), reward, tmp_path, sampling=Sampling(4))
    assert module.reward is reward
    assert module.hparams["reward"] is reward  # it has called save_hyperparameters()
    assert module.hparams_initial["reward"] == "Uncopied()", (
        "Lightning no longer sets by `_set_hparams` what its save_hyperparameters goes on to copy"
    )
    data = PromptDataModule(LockedSource(), tokenizer=model, batch_size=4)
    trainer = make_trainer()
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    kept = torch.load(tmp_path / "own.ckpt", weights_only=True)
    assert "reward" not in kept["hyper_parameters"]
    assert "train" not in kept["datamodule_hyper_parameters"]


class Held:
    """What a caller has in a variable."""


@pytest.mark.parametrize(
    "make", [lambda: PreferenceModule(ModelSpec("a/model"), DPO()), lambda: OwnData(object(), "m")]
)
def test_what_the_caller_held_is_let_go_without_a_search_for_garbage(
    make: Callable[[], Any],
) -> None:
    def call() -> weakref.ref[Held]:
        held = Held()
        make()
        return weakref.ref(held)

    gc.disable()
    try:
        assert call()() is None
    finally:
        gc.enable()
