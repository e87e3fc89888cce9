"""Prompts with text: which text comes with which prompts, wherever a run began."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn, optim
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import (
    DemonstrationDataModule,
    PlainText,
    PromptDataModule,
    PromptTextDataModule,
    RowsSource,
)
from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.testing import make_tokenizer
from tests.unit.data.contract import attach, equal, ready

PROMPTS = RowsSource([{"prompt": f"tell me of {n}:"} for n in range(20)])
TEXT = RowsSource([{"text": f"it is said that {n} is {n}."} for n in range(14)])
EPOCHS, BATCHES = 3, 5
Seen = list[tuple[list[int], list[int]]]


@pytest.fixture
def make(tokenizer: PreTrainedTokenizerFast) -> Any:
    def factory(**options: Any) -> PromptTextDataModule:
        given = {"batch_size": 3, "seed": 1, "tokenizer": tokenizer, "format": PlainText()}
        text = DemonstrationDataModule(TEXT, **(given | options.pop("text", {})))
        return PromptTextDataModule(
            PROMPTS, text=text, **({"tokenizer": tokenizer, "batch_size": 4} | options)
        )

    return factory


class Recorder(LightningModule):
    """Notes the rows of prompts and text of each step."""

    def __init__(self, path: Path | None = None, at: int = -1) -> None:
        super().__init__()
        self.weight = nn.Parameter(Tensor([0.0]))
        self.seen: Seen = []
        self.path, self.at = path, at

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.seen.append((batch["index"].tolist(), batch["text"]["index"].tolist()))
        return self.weight.sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Nothing."""

    def on_train_batch_end(self, *_: Any) -> None:
        if len(self.seen) == self.at and self.path is not None:
            self.trainer.save_checkpoint(self.path)

    def configure_optimizers(self) -> optim.Optimizer:
        return optim.SGD(self.parameters(), lr=0.1)


def _fit(data: PromptTextDataModule, ckpt_path: Path | None = None, **options: Any) -> Seen:
    module = Recorder(**options)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_epochs=EPOCHS, use_distributed_sampler=False, **quiet)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module.seen


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.parametrize("at", [3, 7, 10])
def test_a_resumed_run_sees_the_same_prompts_with_the_same_text(
    make: Any, tmp_path: Path, at: int
) -> None:
    whole = _fit(make(), path=tmp_path / "run.ckpt", at=at)
    assert len(whole) == EPOCHS * BATCHES
    assert whole[at:] == _fit(make(), ckpt_path=tmp_path / "run.ckpt")


def test_text_goes_round_in_epochs_of_its_own(make: Any) -> None:
    data = ready(make())
    loader = data.train_dataloader()
    assert len(loader) == BATCHES
    batches = list(chain(loader, loader, loader))
    texts = [batch["text"]["index"].tolist() for batch in batches]
    rounds = [sorted(chain.from_iterable(texts[i : i + 4])) for i in (0, 4, 8)]
    assert all(
        len(set(rows)) == 12 for rows in rounds
    )  # four batches of three in each epoch, and no row twice
    assert texts[:4] != texts[4:8] != texts[8:12]
    plain = ready(PromptDataModule(PROMPTS, tokenizer=make_tokenizer(), batch_size=4))
    for batch, alone in zip(batches, plain.train_dataloader(), strict=False):
        assert equal({name: value for name, value in batch.items() if name != "text"}, alone)


def test_two_processes_share_the_text_of_one(make: Any) -> None:
    whole = [
        batch["text"]["index"].tolist()
        for batch in ready(make(text={"batch_size": 4})).train_dataloader()
    ]
    parts = []
    for rank in range(2):
        data = attach(make(batch_size=2, text={"batch_size": 2}), replicas=2, rank=rank)
        parts.append([batch["text"]["index"].tolist() for batch in ready(data).train_dataloader()])
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(rows) for rows in whole]


def test_other_text_is_other_data(make: Any) -> None:
    data, other = ready(make()), ready(make(text={"max_completion_length": 40}))
    assert data.dataset_hash != other.dataset_hash
    with pytest.raises(CheckpointError, match="data set"):
        other.load_state_dict(data.state_dict())


def test_what_does_not_fit_is_refused(make: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    data = make(text={"tokenizer": make_tokenizer(merges=("i n",))})
    with pytest.raises(ConfigurationError, match="another tokenizer than the prompts"):
        ready(data)
    only_val = DemonstrationDataModule(val=TEXT, tokenizer=tokenizer, format=PlainText())
    with pytest.raises(ConfigurationError, match="no training rows"):
        PromptTextDataModule(PROMPTS, tokenizer=tokenizer, text=only_val)
