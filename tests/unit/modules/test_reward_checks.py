"""Six ways in which a reward model does not learn: each broken run names its cause; sound runs say nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from lit_rlhf.data import PreferenceDataModule, RowsSource
from lit_rlhf.data.collate import PreferenceCollator
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import RewardModelModule
from lit_rlhf.objectives import (
    BradleyTerry,
    HeadEnsemble,
    RewardLossSum,
    ScaledBradleyTerry,
)
from lit_rlhf.testing import tiny_preferences
from lit_rlhf.types import BranchedBatch
from tests.unit.modules.policies import make_trainer

Rows = list[dict[str, Any]]


def module_of(
    model: Path, kind: type[RewardModelModule] = RewardModelModule, lr: float = 1e-3, **spec: Any
) -> RewardModelModule:
    return kind(
        ModelSpec(name=str(model), **spec),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=lr),
    )


def data_of(model: Path, rows: Rows, val: Rows | None = None, **options: Any) -> Any:
    held_out = None if val is None else RowsSource(val)
    return PreferenceDataModule(
        RowsSource(rows), val=held_out, tokenizer=str(model), batch_size=8, **options
    )


def fit(module: RewardModelModule, data: Any, **options: Any) -> None:
    make_trainer(max_epochs=1, limit_train_batches=1, **options).fit(module, data)


def own_loader(model: Path, change: Callable[[dict[str, Any]], None]) -> DataLoader[Any]:
    """Batches that somebody makes without the DataModule, and its checks."""
    data = data_of(model, tiny_preferences(16))
    data.prepare_data()
    data.setup("fit")
    rows = [data.rows["train"][i] for i in range(16)]
    for row in rows:
        change(row)  # type: ignore[arg-type]
    return DataLoader(rows, batch_size=8, collate_fn=PreferenceCollator(0))  # type: ignore[arg-type]


class FrozenHead(RewardModelModule):
    def configure_roles(self) -> None:
        super().configure_roles()
        self.backbone.heads["reward"].requires_grad_(False)


class ForgottenHead(RewardModelModule):
    def parameter_groups(self) -> list[dict[str, Any]]:
        every = [p for n, p in self.named_parameters() if p.requires_grad and "heads." not in n]
        return [{"params": every, "name": "model"}]


class LastPosition(RewardModelModule):
    """Scores each branch of rows of its own at position -1, as models that know no mask do."""

    def scores(self, batch: BranchedBatch) -> tuple[Tensor, Tensor]:
        with self.backbone.use_role("reward"):
            states = self.backbone._runner(batch, 2)
        width = states.source.shape[1]
        at = states.source[:, width - 1] if width else states.last
        found = self.backbone.head("reward")(states.hidden[at]).view(len(batch["input_ids"]), 2)
        return found, states.mask.sum(-1).view(-1, 2)


def test_frozen_or_forgotten_heads_are_refused(tiny_model_dir: Path) -> None:
    data = data_of(tiny_model_dir, tiny_preferences(16))
    lora = LoraSpec(rank=2)
    with pytest.raises(ConfigurationError, match="score head 'reward' is frozen"):
        fit(module_of(tiny_model_dir, FrozenHead, lora=lora), data)
    with pytest.raises(ConfigurationError, match="score head 'reward' is in no optimizer"):
        fit(module_of(tiny_model_dir, ForgottenHead, lora=lora), data)


def test_a_score_read_from_padding_is_refused(tiny_model_dir: Path) -> None:
    rows = tiny_preferences(16)
    rows[1] = {**rows[1], "chosen": rows[1]["chosen"] * 5, "rejected": rows[1]["rejected"] * 5}
    with pytest.raises(ConfigurationError, match=r"alone and .* beside a longer one: the score is"):
        fit(module_of(tiny_model_dir, LastPosition), data_of(tiny_model_dir, rows))


def test_answers_without_an_end_are_named(tiny_model_dir: Path) -> None:
    def cut(row: dict[str, Any]) -> None:
        row["completion_ids"] = [ids[:-1] for ids in row["completion_ids"]]

    with pytest.warns(UserWarning, match="16 of 16 answers of the first batch have no end token"):
        fit(module_of(tiny_model_dir), own_loader(tiny_model_dir, cut))
    rows = [{"prompt": f"{i}? ", "chosen": "good, it is", "rejected": "no"} for i in range(8)]
    options = {"max_completion_length": 3, "too_long": "truncate"}
    with pytest.warns(UserWarning, match=r"8 of 16 .*no end token .*too_long: drop"):
        fit(module_of(tiny_model_dir), data_of(tiny_model_dir, rows * 2, **options))


def test_identical_pairs_are_named(tiny_model_dir: Path) -> None:
    def same(row: dict[str, Any]) -> None:
        row["completion_ids"] = row["completion_ids"][:1] * 2

    def some(row: dict[str, Any]) -> None:
        if row["index"] < 3:
            same(row)

    with pytest.raises(DataError, match="same tokens in all 8 pairs of the first batch"):
        fit(module_of(tiny_model_dir), own_loader(tiny_model_dir, same))
    with pytest.warns(UserWarning, match="same tokens in 3 of 8 pairs"):
        fit(module_of(tiny_model_dir), own_loader(tiny_model_dir, some))


@pytest.mark.parametrize("label", [{"margin": -1.0}, {"p_chosen": 0.1}])
def test_labels_that_say_the_opposite_are_named(
    tiny_model_dir: Path, label: dict[str, float]
) -> None:
    rows = [{**row, **label} for row in tiny_preferences(16)]
    (name,) = label
    with pytest.warns(UserWarning, match=f"labels look swapped: {name} is below"):
        fit(module_of(tiny_model_dir), data_of(tiny_model_dir, rows))


def test_validation_pairs_the_wrong_way_round_are_named(tiny_model_dir: Path) -> None:
    rows, val = tiny_preferences(96), tiny_preferences(48, seed=1)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in val]
    for held_out, warns in ((swapped, True), (val, False)):
        module = module_of(tiny_model_dir, lr=5e-3)
        trainer = make_trainer(max_epochs=2)
        data = data_of(tiny_model_dir, rows, held_out)
        if warns:
            with pytest.warns(UserWarning, match="swapped between training and validation data"):
                trainer.fit(module, data)
        else:
            trainer.fit(module, data)
            assert trainer.callback_metrics["val/accuracy"] > 0.9


@pytest.mark.parametrize(
    ("lr", "lora", "said"),
    [
        (1e-9, False, "range 1e-08 to .*learns nothing. .*1e-5 is usual where all weights"),
        (0.5, False, "range 1e-08 to .*nothing but noise"),
        (1e-8, True, "range 1e-06 to 0.01: .*learns nothing. .*1e-4 is usual for LoRA"),
        (0.1, True, "range 1e-06 to 0.01: .*nothing but noise"),
    ],
)
def test_learning_rates_out_of_range_are_named(
    tiny_model_dir: Path, lr: float, lora: bool, said: str
) -> None:
    spec = {"lora": LoraSpec(rank=2)} if lora else {}
    module = module_of(tiny_model_dir, lr=lr, **spec)
    with pytest.warns(UserWarning, match=said):
        fit(module, data_of(tiny_model_dir, tiny_preferences(16)))


def test_a_warm_up_from_zero_is_no_low_rate(tiny_model_dir: Path) -> None:
    module = RewardModelModule(
        ModelSpec(name=str(tiny_model_dir)),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1e-8, total_iters=10
        ),
    )
    fit(module, data_of(tiny_model_dir, tiny_preferences(16)))


@pytest.mark.parametrize(
    ("precision", "options"),
    [("32-true", {"lora": LoraSpec(rank=2, dropout=0.5)}), ("bf16-mixed", {})],
)
def test_sound_runs_say_nothing(
    tiny_model_dir: Path, options: dict[str, Any], precision: Any
) -> None:
    """Warnings are errors in these tests. Dropout is off where rows are compared, and drawn as ever after."""
    rows = tiny_preferences(32)
    rows[1] = {**rows[1], "chosen": rows[1]["chosen"] * 5}
    data = data_of(tiny_model_dir, rows, rows)
    module = RewardModelModule(
        ModelSpec(name=str(tiny_model_dir), **options), HeadEnsemble(members=2)
    )
    fit(module, data, precision=precision)


def test_pairs_without_the_margin_that_weighs_them_are_refused(tiny_model_dir: Path) -> None:
    rows = [
        row | ({"margin": 2.0} if place % 4 else {})
        for place, row in enumerate(tiny_preferences(16))
    ]
    loss = RewardLossSum([BradleyTerry(), ScaledBradleyTerry()])
    module = RewardModelModule(ModelSpec(name=str(tiny_model_dir)), loss)
    with pytest.raises(DataError, match=r"ScaledBradleyTerry multiplies.*4 of the 16 train pairs"):
        fit(module, data_of(tiny_model_dir, rows))
    whole = [row | {"margin": 1.0} for row in rows]
    module = RewardModelModule(ModelSpec(name=str(tiny_model_dir)), ScaledBradleyTerry())
    fit(module, data_of(tiny_model_dir, whole))


def test_statistics_of_scores_are_of_one_validation_alone(tiny_model_dir: Path) -> None:
    """A test's scores are not among them, nor those of an evaluation that was broken off."""

    class Breaks(Callback):
        def on_validation_batch_end(self, *args: object) -> None:
            raise RuntimeError("broken off")

    module = module_of(tiny_model_dir, lora=LoraSpec(rank=2))
    data = data_of(
        tiny_model_dir,
        tiny_preferences(8),
        tiny_preferences(16, seed=1),
        test=RowsSource(tiny_preferences(16, seed=2)),
    )
    (first,) = make_trainer().validate(module, data, verbose=False)
    expected = module.score_mean, module.score_std
    make_trainer().test(module, data, verbose=False)
    with pytest.raises(RuntimeError, match="broken off"):
        make_trainer(callbacks=[Breaks()]).validate(module, data, verbose=False)
    (again,) = make_trainer().validate(module, data, verbose=False)
    assert (module.score_mean, module.score_std) == expected
    assert again == first
