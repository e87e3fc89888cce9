"""Under a Lightning Trainer, each way of stopping and going on sees the batches of an unbroken run, each once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import FileSource, PreferenceDataModule, RowsSource
from lit_rlhf.errors import CheckpointError, ConfigurationError, DataError
from lit_rlhf.testing import tiny_preferences
from tests.walks import walk

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings(
        "ignore:.*fork:DeprecationWarning"
    ),  # torch's loaders fork, from Python 3.12 on said aloud
]
EPOCHS, BATCHES = 3, 5
Seen = list[tuple[int, int, list[int]]]


class Recorder(LightningModule):
    """Notes (epoch, batch_idx, rows) of each training step that ends."""

    def __init__(
        self, *, asks_for_steps: bool = False, fails_at: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: Seen = []
        self.evaluated: list[int] = []
        self.asks_for_steps = asks_for_steps
        self.fails_at = fails_at

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if (self.current_epoch, batch_idx) == self.fails_at:
            raise RuntimeError("interrupted")
        self.seen.append((self.current_epoch, batch_idx, batch["index"].tolist()))
        return self.weight * 1.0

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.evaluated += batch["index"].tolist()

    test_step = validation_step

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[int]:
        return batch["index"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.asks_for_steps:
            assert self.trainer.estimated_stepping_batches == EPOCHS * BATCHES
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Saves at the end of a batch, or of an epoch (batch None)."""

    def __init__(self, path: Path, epoch: int, batch: int | None) -> None:
        self.path, self.epoch, self.batch = path, epoch, batch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if (trainer.current_epoch, args[-1]) == (self.epoch, self.batch):
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.batch is None and trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        trainer.save_checkpoint(self.path)


@pytest.fixture
def make(tokenizer: PreTrainedTokenizerFast) -> Callable[..., PreferenceDataModule]:
    def factory(rows: int = 23, **options: Any) -> PreferenceDataModule:
        source = RowsSource(tiny_preferences(rows))
        return PreferenceDataModule(
            source, **{"tokenizer": tokenizer, "batch_size": 4, "seed": 2, **options}
        )

    return factory


def trainer(tmp_path: Path, *callbacks: Callback, **options: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(
        **{
            "max_epochs": EPOCHS,
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": tmp_path,
            **quiet,
            **options,
        },
        callbacks=list(callbacks),
    )


def run(
    tmp_path: Path,
    data: PreferenceDataModule,
    *callbacks: Callback,
    ckpt: Path | None = None,
    **options: Any,
) -> Seen:
    model = Recorder(asks_for_steps=options.pop("asks_for_steps", False))
    trainer(tmp_path, *callbacks, **options).fit(model, data, ckpt_path=ckpt, weights_only=True)
    return model.seen


def after(seen: Seen, epoch: int, batch: int | None) -> Seen:
    last = BATCHES - 1 if batch is None else batch
    return [step for step in seen if step[:2] > (epoch, last)]


def test_a_run_sees_what_plain_loops_see(
    tmp_path: Path, make: Callable[..., PreferenceDataModule]
) -> None:
    data = make()
    data.prepare_data()
    data.setup("fit")
    plain = [
        (epoch, place, batch["index"].tolist())
        for epoch in range(EPOCHS)
        for place, batch in enumerate(data.train_dataloader())
    ]
    assert len(plain) == EPOCHS * BATCHES
    for use_distributed_sampler in (True, False):
        assert run(tmp_path, make(), use_distributed_sampler=use_distributed_sampler) == plain


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("epoch", "batch"),
    walk(
        [(0, 1), (1, 0), (1, 2), (1, BATCHES - 1), (1, None), (0, None)],
        *[(0, 1), (1, BATCHES - 1), (0, None)],
    ),
)
def test_a_resumed_run_goes_on_exactly(
    tmp_path: Path,
    make: Callable[..., PreferenceDataModule],
    workers: int,
    epoch: int,
    batch: int | None,
) -> None:
    path = tmp_path / "stop.ckpt"
    whole = run(tmp_path, make(num_workers=workers), SaveAt(path, epoch, batch))
    assert run(tmp_path, make(num_workers=workers), ckpt=path) == after(whole, epoch, batch)


def test_a_batch_that_was_broken_off_is_done_again(
    tmp_path: Path, make: Callable[..., PreferenceDataModule]
) -> None:
    path = tmp_path / "stop.ckpt"
    whole = run(tmp_path, make())
    model = Recorder(fails_at=(1, 3))
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer(tmp_path, SaveAt(path, -1, -1)).fit(model, make())
    assert model.seen + run(tmp_path, make(), ckpt=path) == whole


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "options", [{"asks_for_steps": True}, {"reload_dataloaders_every_n_epochs": 1}], ids=str
)
def test_loaders_made_early_or_anew_go_on_exactly(
    tmp_path: Path, make: Callable[..., PreferenceDataModule], workers: int, options: dict[str, Any]
) -> None:
    path = tmp_path / "stop.ckpt"
    whole = run(tmp_path, make(num_workers=workers), SaveAt(path, 1, 2), **options)
    assert whole == run(tmp_path, make())
    assert run(tmp_path, make(num_workers=workers), ckpt=path, **options) == after(whole, 1, 2)


def test_a_part_of_each_epoch(tmp_path: Path, make: Callable[..., PreferenceDataModule]) -> None:
    path = tmp_path / "stop.ckpt"
    whole = run(tmp_path, make(), SaveAt(path, 1, 1), limit_train_batches=3)
    assert [step[:2] for step in whole] == [
        (epoch, place) for epoch in range(3) for place in range(3)
    ]
    assert run(tmp_path, make(), ckpt=path, limit_train_batches=3) == after(whole, 1, 1)


@pytest.mark.parametrize("limit", [{"limit_train_batches": 3}, {}])
def test_an_epochs_end_leaves_the_next_ones_order_free(
    tmp_path: Path, make: Callable[..., PreferenceDataModule], limit: dict[str, Any]
) -> None:
    path = tmp_path / "stop.ckpt"
    whole = run(tmp_path, make(), SaveAt(path, 0, None), **limit)
    assert run(tmp_path, make(), ckpt=path, **limit) == after(whole, 0, None)
    other = run(tmp_path, make(batch_size=2), **limit)
    assert run(tmp_path, make(batch_size=2), ckpt=path, **limit) == [s for s in other if s[0] > 0]


def test_a_longer_run_from_the_end_of_a_shorter_one(
    tmp_path: Path, make: Callable[..., PreferenceDataModule]
) -> None:
    whole = run(tmp_path, make())
    path = tmp_path / "end.ckpt"
    first = run(tmp_path, make(), SaveAt(path, 1, None), max_epochs=2)
    assert first + run(tmp_path, make(), ckpt=path) == whole


def test_max_steps_repeats_no_rows(
    tmp_path: Path, make: Callable[..., PreferenceDataModule]
) -> None:
    # Lightning re-enters the finished epoch there (its issue 19617) and gives the next one the number after: the order
    # is another than in an unbroken run, but an epoch still has each row once.
    path = tmp_path / "end.ckpt"
    first = run(tmp_path, make(), SaveAt(path, 0, None), max_steps=5, max_epochs=-1)
    rest = run(tmp_path, make(), ckpt=path, max_steps=12, max_epochs=-1)
    assert [step[:2] for step in first + rest] == [(n // BATCHES, n % BATCHES) for n in range(12)]
    for epoch in range(3):
        seen = [row for *step, rows in first + rest if step[0] == epoch for row in rows]
        assert len(seen) == len(set(seen))


def test_a_loader_without_its_module_goes_on_too(
    tmp_path: Path, make: Callable[..., PreferenceDataModule]
) -> None:
    def loader() -> Any:
        data = make()
        data.prepare_data()
        data.setup("fit")
        return data.train_dataloader()

    path = tmp_path / "stop.ckpt"
    whole, resumed = Recorder(), Recorder()
    trainer(tmp_path, SaveAt(path, 1, 2)).fit(whole, loader())
    trainer(tmp_path).fit(resumed, loader(), ckpt_path=path, weights_only=True)
    assert resumed.seen == after(whole.seen, 1, 2)


def test_one_module_serves_several_runs(
    tmp_path: Path, make: Callable[..., PreferenceDataModule]
) -> None:
    data = make()
    first = run(tmp_path, data, limit_train_batches=3)
    assert run(tmp_path, data, limit_train_batches=3) == first


def test_another_data_set_is_refused_by_name(
    tmp_path: Path, make: Callable[..., PreferenceDataModule]
) -> None:
    path = tmp_path / "stop.ckpt"
    mine, other = make(), make(rows=24)
    run(tmp_path, mine, SaveAt(path, 1, None))
    known, found = mine.dataset_hash[:16], other.dataset_hash[:16]
    hashes = f"(?s)made with the data set {known}, this run has {found} .*rows in memory"
    with pytest.raises(CheckpointError, match=hashes):
        run(tmp_path, other, ckpt=path)


@pytest.mark.parametrize("option", [{"batch_size": 2}, {"seed": 3}, {"bucket_batches": 2}], ids=str)
def test_another_order_is_refused_within_an_epoch(
    tmp_path: Path, make: Callable[..., PreferenceDataModule], option: dict[str, int]
) -> None:
    path = tmp_path / "stop.ckpt"
    run(tmp_path, make(), SaveAt(path, 1, 2))
    with pytest.raises(
        CheckpointError, match=r"order \(4 rows per step, seed 2, bucket_batches 50.*this run has"
    ):
        run(tmp_path, make(**option), ckpt=path)


def test_a_newer_state_is_refused(make: Callable[..., PreferenceDataModule]) -> None:
    data = make()
    with pytest.raises(CheckpointError, match="version 99, this release reads version 1"):
        data.load_state_dict({**data.state_dict(), "version": 99})


def test_states_are_plain_values(make: Callable[..., PreferenceDataModule]) -> None:
    assert all(isinstance(value, int | str) for value in make().state_dict().values())


def test_other_stages_ignore_the_position(
    tmp_path: Path, make: Callable[..., PreferenceDataModule]
) -> None:
    path = tmp_path / "stop.ckpt"
    run(tmp_path, make(), SaveAt(path, 1, 2))
    rows = RowsSource(tiny_preferences(9, seed=5))
    data = PreferenceDataModule(test=rows, tokenizer=make().tokenizer)
    model = Recorder()
    trainer(tmp_path).test(model, data, ckpt_path=path, verbose=False, weights_only=True)
    assert sorted(model.evaluated) == list(range(9))


def test_validation_runs_over_the_kept_prompts(
    tmp_path: Path, make: Callable[..., PreferenceDataModule]
) -> None:
    data, model = make(val_fraction=0.3), Recorder()
    trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0).fit(model, data)
    kept = list(range(len(data.rows["val"])))
    first, second = model.evaluated[: len(kept)], model.evaluated[len(kept) :]
    assert first == second
    assert sorted(first) == kept
    assert len(kept) > 0


def test_prediction_gives_each_row_once(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = PreferenceDataModule(
        test=RowsSource(tiny_preferences(9)), tokenizer=tokenizer, batch_size=4
    )
    answers = trainer(tmp_path).predict(Recorder(), data)
    assert answers == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_overfitting_repeats_the_same_batches(
    tmp_path: Path, make: Callable[..., PreferenceDataModule]
) -> None:
    seen = run(tmp_path, make(), overfit_batches=2)
    assert [rows for *_, rows in seen] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 3


def test_a_stage_without_data_is_refused(
    tmp_path: Path, make: Callable[..., PreferenceDataModule]
) -> None:
    with pytest.raises(
        ConfigurationError, match="Stage 'validate' needs the data option `val` or `val_fraction`"
    ):
        trainer(tmp_path).validate(Recorder(), make(), verbose=False)
    missing = PreferenceDataModule(FileSource("none.jsonl"), tokenizer=make().tokenizer)
    with pytest.raises(ConfigurationError, match=r"Stage 'test' .* --data.test FileSource "):
        trainer(tmp_path).test(
            Recorder(), missing, verbose=False
        )  # whose file isn't looked for either


def test_rows_to_test_on_need_no_others(
    tmp_path: Path, make: Callable[..., PreferenceDataModule]
) -> None:
    tested = RowsSource(tiny_preferences(4))
    data = PreferenceDataModule(FileSource("none.jsonl"), test=tested, tokenizer=make().tokenizer)
    trainer(tmp_path).test(Recorder(), data, verbose=False)
    assert set(data.reports) == {"test"}
    with pytest.raises(DataError, match=r"none\.jsonl"):
        data.prepare_data()  # all of them, where no Trainer is at work


def test_pinned_memory_is_for_cuda_alone(
    tmp_path: Path, make: Callable[..., PreferenceDataModule]
) -> None:
    data = make()
    run(tmp_path, data, max_epochs=1)
    assert not data.train_dataloader().pin_memory
