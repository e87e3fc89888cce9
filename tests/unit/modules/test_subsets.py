"""Accuracy by subset in validation, of pairs and of rankings; data without subsets log none."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.data import (
    DemonstrationDataModule,
    PreferenceDataModule,
    RankedDataModule,
    RowsSource,
)
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import RewardModelModule
from lit_rlhf.modules.means import SubsetMeans
from lit_rlhf.objectives import PlackettLuce
from lit_rlhf.testing import tiny_demonstrations, tiny_preferences, tiny_rankings
from tests.unit.modules.policies import make_trainer


def validated(model: Path, rows: list[dict[str, Any]], kind: str) -> dict[str, float]:
    classes = {"pairs": PreferenceDataModule, "rankings": RankedDataModule}
    data = classes[kind](
        RowsSource(rows), val=RowsSource(rows), test=RowsSource(rows), tokenizer=str(model)
    )
    loss = PlackettLuce() if kind == "rankings" else None
    module = RewardModelModule(ModelSpec(name=str(model)), loss)
    trainer = make_trainer()
    found = trainer.validate(module, data, verbose=False)[0]
    tested = trainer.test(module, data, verbose=False)[0]
    assert {name.replace("test/", "val/"): value for name, value in tested.items()} == found
    return dict(found)


@pytest.mark.parametrize("kind", ["pairs", "rankings"])
def test_accuracy_by_subset_adds_up_to_the_whole(kind: str, tiny_model_dir: Path) -> None:
    make = {"pairs": tiny_preferences, "rankings": tiny_rankings}[kind]
    rows = [{**row, "subset": ["hard", "easy one", None][i % 3]} for i, row in enumerate(make(30))]
    found = validated(tiny_model_dir, rows, kind)
    own = {name for name in found if name.startswith("val/accuracy/")}
    assert own == {"val/accuracy/hard", "val/accuracy/easy one"}
    rest = validated(tiny_model_dir, [r for r in rows if r["subset"] is None], kind)
    total = 10 * sum(found[name] for name in own) + 10 * rest["val/accuracy"]
    assert found["val/accuracy"] == pytest.approx(total / 30, abs=1e-6)
    assert not any(name.startswith("val/accuracy/") for name in rest)


def test_demonstrations_keep_their_batches(tiny_model_dir: Path) -> None:
    rows = [{**row, "subset": "a"} for row in tiny_demonstrations(8)]
    data = DemonstrationDataModule(RowsSource(rows), tokenizer=str(tiny_model_dir))
    data.prepare_data()
    data.setup("fit")
    assert "subset" not in next(iter(data.train_dataloader()))


def test_what_names_no_parts_is_said_and_not_logged() -> None:
    means = SubsetMeans()
    means.update([str(n) for n in range(101)], torch.ones(101))
    with pytest.warns(UserWarning, match="has 101 values"):
        assert means.compute() == {}
    means.update(["a", "b", "a", ""], torch.tensor([1.0, torch.nan, 0.0, 1.0]))
    assert means.compute() == {"a": (0.5, 2)}
    assert means.compute() == {}
