"""Every kind of reward model: its parts from YAML, and trained by a loop of plain PyTorch without a Trainer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf import from_config, objectives
from lit_rlhf.modules import RewardModelModule
from lit_rlhf.testing import tiny_demonstrations, tiny_preferences, tiny_rankings
from tests.public import public_names
from tests.walks import walk

PAIRS = [{**row, "margin": 1.0, "p_chosen": 0.9} for row in tiny_preferences(8)]
RATED = [
    {"prompt": row["prompt"], "response": row[side], "helpfulness": rating, "verbosity": 1}
    for row in tiny_preferences(8)
    for side, rating in (("chosen", 4), ("rejected", 1))
]
STEPS = [
    {"prompt": f"add {n}: ", "completions": ["one", "two it is"], "labels": [True, n % 2 == 0]}
    for n in range(8)
]
SCORED = [{**row, "score": float(n % 3)} for n, row in enumerate(tiny_demonstrations(8))]
LABELLED = [{**row, "label": n % 2} for n, row in enumerate(tiny_demonstrations(8))]
BOTH = {"class_path": "HelpSteer2Pairs", "init_args": {"attributes": ["helpfulness", "verbosity"]}}
# Options of the loss, DataModule, rows, options of the data.
KINDS: dict[str, tuple[dict[str, Any], str, list[dict[str, Any]], dict[str, Any]]] = {
    "BradleyTerry": ({}, "Preference", PAIRS, {}),
    "ScaledBradleyTerry": ({}, "Preference", PAIRS, {}),
    "AllPairs": ({}, "Ranked", tiny_rankings(8), {}),
    "PlackettLuce": ({}, "Ranked", tiny_rankings(8), {}),
    "Regression": ({}, "Unpaired", SCORED, {}),
    "GaussianRegression": ({}, "Unpaired", SCORED, {}),
    "Outcome": ({}, "Unpaired", LABELLED, {}),
    "Process": ({}, "Process", STEPS, {}),
    "LengthDebiased": ({"coef": 0.1}, "Preference", PAIRS, {}),
    "HeadEnsemble": ({"members": 2, "bootstrap": False}, "Preference", PAIRS, {}),
    "Attributes": ({"weights": [1.0, -0.5]}, "Preference", RATED, {"format": BOTH}),
    "GatedAttributes": ({"attributes": 2}, "Preference", RATED, {"format": BOTH}),
    "RewardLossSum": (
        {"losses": [{"class_path": "BradleyTerry"}, {"class_path": "ScaledBradleyTerry"}]},
        *("Preference", PAIRS, {}),
    ),
}


def test_no_kind_is_forgotten() -> None:
    found = {name: getattr(objectives, name) for name in public_names("lit_rlhf.objectives")}
    losses = {
        name
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, objectives.RewardLoss)
    }
    assert losses - set(KINDS) == {"RewardLoss", "PairScoreLoss", "RankingLoss"}  # bases


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize("kind", walk(KINDS, "BradleyTerry", "Process", "HeadEnsemble"))
def test_from_yaml_and_without_a_trainer(kind: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    options, module, rows, given = KINDS[kind]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"class_path": "FileSource", "init_args": {"path": str(tmp_path / "rows.jsonl")}}
    data = {"train": source, "tokenizer": str(tiny_model_dir)}
    data |= {"batch_size": 4, "cache_dir": str(tmp_path / "cache"), **given}
    loss = {"class_path": kind, "init_args": options}
    config = {
        "run_dir": str(tmp_path / "run"),
        "model": {
            "class_path": "RewardModelModule",
            "init_args": {"backbone": {"name": str(tiny_model_dir)}, "loss": loss},
        },
        "data": {"class_path": f"{module}DataModule", "init_args": data},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))  # which is YAML too
    parts = from_config(tmp_path / "run.yaml")
    model = parts.module
    assert isinstance(model, RewardModelModule)
    model.configure_model()
    parts.data.prepare_data()
    parts.data.setup("fit")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen = []
    for _ in range(8):
        total = 0.0
        for batch in parts.data.train_dataloader():
            scores, _ = model.scores(batch)
            value = model.loss(scores, batch).loss.mean()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += float(value.detach())
        seen.append(total)
    assert seen[-1] < seen[0]
