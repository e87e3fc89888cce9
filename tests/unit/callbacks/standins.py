"""Small Lightning modules with the seams that callbacks use: seconds to run, and every number depends on the past."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_rlhf.modules.phases import Phases
from lit_rlhf.seeding import generator

ROWS, BATCH = 12, 2


class Rows(Dataset[Tensor]):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index / ROWS, (index * 7 % ROWS) / ROWS])


class Order(Sampler[int]):
    """A permutation per epoch that can begin in its midst."""

    def __init__(self) -> None:
        self.epoch, self.start = 0, 0
        self.pending: tuple[int, int] | None = None

    def __len__(self) -> int:
        return ROWS

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        epoch, start = self.pending or (self.epoch, 0)
        self.pending = None
        order = torch.randperm(ROWS, generator=generator("order", epoch)).tolist()
        return iter(order[start * BATCH :])


class Data(LightningDataModule):
    def __init__(self, workers: int = 0) -> None:
        super().__init__()
        self.workers = workers
        self.order = Order()

    def train_dataloader(self) -> DataLoader[Tensor]:
        return _Loader(
            Rows(),
            batch_size=BATCH,
            sampler=self.order,
            num_workers=self.workers,
            generator=generator("loader"),
        )

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Rows(), batch_size=4)

    def state_dict(self) -> dict[str, Any]:
        loop = self.trainer.fit_loop
        epoch, batch = (
            loop.epoch_progress.current.processed,
            loop.epoch_loop.batch_progress.current.ready,
        )
        return {"epoch": epoch, "batch": 0 if loop.epoch_progress.current.ready == epoch else batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order.pending = (state["epoch"], state["batch"])


class _Loader(DataLoader[Tensor]):
    def __len__(self) -> int:
        return ROWS // BATCH


class Module(LightningModule):
    """Two layers and Adam; automatic, or manual with two optimizer steps an iteration."""

    draws_samples = True

    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = not manual
        torch.manual_seed(7)
        self.net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        self.iteration = 0
        self.seen: list[float] = []
        self.phases = Phases()

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Any]:
        self.seen.append(float(batch.sum()))
        self.phases.reset()
        with self.phases("rollout", total=2) as advance:
            self.during_rollout()
            advance()
            advance()
        loss = self.loss(batch)
        samples = [
            {
                "iteration": self.iteration,
                "prompt": f"p{self.iteration}",
                "response": "r",
                "score": float(loss.detach()),
                "finished": True,
            }
        ]
        self.log("train/loss", loss.detach(), batch_size=len(batch), on_step=True, on_epoch=True)
        self.log(
            "train/most",
            loss.detach(),
            batch_size=len(batch),
            on_step=False,
            on_epoch=True,
            reduce_fx="max",
        )
        if not self.automatic_optimization:
            self.steps(batch)
        self.iteration += 1
        return {"samples": samples} | ({"loss": loss} if self.automatic_optimization else {})

    def steps(self, batch: Tensor) -> None:
        optimizer = self.optimizers()
        with self.phases("update", total=2) as advance:
            for _ in range(2):
                self.manual_backward(self.loss(batch))
                optimizer.step()
                optimizer.zero_grad()
                self.lr_schedulers().step()
                advance()

    def during_rollout(self) -> None:
        """For tests that interrupt."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), batch_size=len(batch))

    def loss(self, batch: Tensor) -> Tensor:
        return (self.net(batch).squeeze(-1) - batch.sum(-1)).pow(2).mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["iteration"] = self.iteration

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.iteration = checkpoint["iteration"]


def quiet_trainer(tmp: Path, callbacks: list[Any], **options: Any) -> Trainer:
    """A trainer on one CPU process without bar, summary and logger."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "default_root_dir": tmp,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="GPU available but not used")
        return Trainer(callbacks=callbacks, **(defaults | options))
