"""Options from Python, where no parser looks at their kinds."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import config

from lit_rlhf import metrics, objectives
from lit_rlhf.data import PreferenceDataModule, RowsSource
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import Steps, Updates
from lit_rlhf.rollout import Sampling
from lit_rlhf.testing import make_tiny_model, make_tokenizer, tiny_preferences

OPTIONS = [
    (kind, each.name)
    for kind in (ModelSpec, LoraSpec, Sampling, Steps, Updates)
    for each in fields(kind)
]


class Loaded:
    """Of no kind that an option has."""

    def __repr__(self) -> str:
        return "Loaded(\n" + "  a layer\n" * 200 + ")"


@pytest.mark.parametrize(("kind", "name"), OPTIONS)
def test_each_option_of_another_kind_is_refused_where_it_is_given(kind: Any, name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{kind.__name__}\({name}=.*must be") as refusal:
        kind(**{name: Loaded()})
    assert len(str(refusal.value)) < 500
    assert "\n" not in str(refusal.value)


def test_models_in_memory_are_told_the_way() -> None:
    tokenizer = make_tokenizer()
    for name, value in (
        ("name", make_tiny_model(tokenizer)),
        ("tokenizer", tokenizer),
    ):
        with pytest.raises(ConfigurationError, match=r"by its save_pretrained\(directory\)"):
            ModelSpec(**{name: value})


def test_paths_are_directories(tiny_model_dir: Path) -> None:
    assert ModelSpec(name=tiny_model_dir) == ModelSpec(name=str(tiny_model_dir))  # type: ignore[arg-type]
    rows = RowsSource(tiny_preferences(8))
    data = PreferenceDataModule(rows, tokenizer=tiny_model_dir)  # type: ignore[arg-type]
    data.prepare_data()
    assert data.hparams["tokenizer"] == str(tiny_model_dir)


def test_a_stage_that_there_is_not_is_refused(tiny_model_dir: Path) -> None:
    rows = RowsSource(tiny_preferences(8))
    with pytest.raises(ConfigurationError, match="stage must be one of fit, validate, test"):
        PreferenceDataModule(rows, tokenizer=str(tiny_model_dir)).setup("train")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the checks of shapes that tests make of formulas, as users call them."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


COLUMN, ROWS = torch.rand(4, 1), torch.rand(4)
LISTS, MARKS = torch.rand(4, 2), torch.ones(4, 2, dtype=torch.bool)
ONE_SHAPE: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (objectives.BradleyTerry(), (COLUMN, ROWS), {}),
    (objectives.BradleyTerry(), (COLUMN, COLUMN), {"margin": ROWS}),
    (objectives.BradleyTerry(), (COLUMN, COLUMN), {"p_chosen": ROWS}),
    (objectives.ScaledBradleyTerry(), (ROWS, ROWS), {"margin": COLUMN}),
    (objectives.Regression(), (LISTS, COLUMN, MARKS), {}),
    (objectives.AllPairs(), (LISTS, COLUMN, MARKS), {}),
    (objectives.PlackettLuce(), (LISTS, COLUMN, MARKS), {}),
    (metrics.PreferenceAccuracy(), (COLUMN, ROWS), {}),
    (metrics.RewardMargin(), (COLUMN, ROWS), {}),
    (metrics.CalibrationError(), (COLUMN, ROWS), {}),
    (objectives.Completion, (COLUMN, torch.ones(4, dtype=torch.int64)), {}),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("called", "given", "columns"), ONE_SHAPE)
def test_shapes_that_torch_would_cross_are_refused(
    called: Any, given: tuple[Any, ...], columns: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match=r"\(4, 1\).*they must have one shape"):
        called(*given, **columns)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("loss", [objectives.DPO(), objectives.SimPO(), objectives.KTO()])
def test_bare_log_probs_are_told_what_a_loss_takes(loss: objectives.PreferenceLoss) -> None:
    with pytest.raises(ConfigurationError, match=r"takes a Completion\(logprobs, lengths, ref_lo"):
        loss(ROWS, ROWS)
