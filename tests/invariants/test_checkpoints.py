"""What Lightning's ModelCheckpoint writes of any module: adapters alone, only tensors and plain values."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.invariants.forked_runs import make_trainer
from tests.invariants.resume_plans import run, write_world
from tests.invariants.resume_runs import MODULES, POLICIES, make_data, make_module


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and data of all modules."""
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.filterwarnings("ignore:Using `ModelCheckpoint` with manual optimization")
def test_a_checkpoint_of_lightning_is_safe_and_small(
    kind: str, world: Path, tmp_path: Path
) -> None:
    module = make_module(kind, world / "tiny-model")
    writer = ModelCheckpoint(tmp_path, every_n_epochs=1, save_on_train_epoch_end=True)
    options = {
        "max_epochs": 1,
        "limit_train_batches": 1,
        "limit_val_batches": 0,
        "callbacks": [writer],
    }
    trainer = make_trainer(run(tmp_path, world, kind), **options)
    trainer.fit(module, datamodule=make_data(kind, world, ranks=1, workers=0))
    (file,) = tmp_path.glob("*.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    running = {name for name, _ in module.named_buffers() if name.startswith("reward.")}
    weights = set(checkpoint["state_dict"]) - running
    roles = {name.split(".")[-2] for name in weights}
    assert roles == {"reward": {"reward"}, "ppo": {"policy", "value"}}.get(kind, {"policy"})
    assert weights == {name for name, p in module.named_parameters() if p.requires_grad}
    assert kind not in POLICIES or checkpoint["lit_rlhf"]["state"]["iteration"] == 1
