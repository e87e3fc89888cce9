"""Reward models as others load them: OpenRLHF, verl and TRL themselves, and classes built as the first two's are."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaModel,
    LlamaPreTrainedModel,
)

from lit_rlhf.functional.branches import branch_layout, expand_branches
from lit_rlhf.models import export_reward
from lit_rlhf.models.cards import Temperature
from lit_rlhf.types import BranchedBatch
from tests.tolerances import FP32_MODEL
from tests.unit.models.conftest import LORA, MakeBackbone, shake


class ScoredTrunk(LlamaPreTrainedModel):
    """OpenRLHF's: the trunk under its family's prefix, and beside it a row called `score` (its default prefix)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        places = (attention_mask.cumsum(-1) - 1).clamp_min(0)
        states = self.model(input_ids, attention_mask=attention_mask, position_ids=places)
        return self.score(states.last_hidden_state)[..., 0]


def of_token_classifier(path: Path, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """verl's: a classifier of tokens with one label, whose bias the export hasn't and is 0 then."""
    config = AutoConfig.from_pretrained(path, num_labels=1, classifier_dropout=0.0)
    model = AutoModelForTokenClassification.from_pretrained(path, config=config).eval()
    return model(input_ids=ids, attention_mask=mask).logits[..., 0]


def of_scored_trunk(path: Path, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    model, told = ScoredTrunk.from_pretrained(path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    return model.eval()(ids, mask)


@pytest.mark.parametrize("load", [of_token_classifier, of_scored_trunk])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_score_of_the_last_attended_token_is_ours(
    make: MakeBackbone, batch: BranchedBatch, tmp_path: Path, load: Any, lora: Any
) -> None:
    backbone = make(lora=lora)
    if lora is not None:
        backbone.add_adapter("reward")
        shake(backbone, "reward")
    backbone.add_head("reward")
    export_reward(backbone, tmp_path / "out", merge=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    pad = AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id
    rows = expand_branches(
        batch["input_ids"], batch["branch_ids"], branch_layout(batch["branch_ids"], 2), pad
    )
    with torch.no_grad():
        ours = backbone(batch, num_branches=2, role="reward", scores="reward").scores
        found = load(tmp_path / "out", rows.input_ids, rows.mask.long())
    last = rows.mask.sum(-1) - 1
    assert ours.std() > 0.01
    torch.testing.assert_close(found[torch.arange(len(last)), last], ours, **FP32_MODEL)


ROWS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [20, 30, 40]]


@pytest.fixture
def exported(make: MakeBackbone, tmp_path: Path) -> Path:
    """A reward model with a temperature, in bfloat16's numbers, which OpenRLHF rounds to."""
    backbone = make()
    backbone.add_head("reward")
    for weight in backbone.parameters():
        weight.data = weight.data.bfloat16().float()
    calibrated = Temperature(2.0, "two pairs", "")  # no number of bfloat16 is rounded by it
    export_reward(backbone, tmp_path / "out", merge=True, temperature=calibrated)
    return tmp_path / "out"


def of_transformers(path: Path) -> list[float]:
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        return [float(model(torch.tensor([row])).logits[0, 0]) for row in ROWS]


@pytest.mark.parametrize(
    ("who", "packages"),
    [
        pytest.param("openrlhf", "LIT_RLHF_OPENRLHF", marks=pytest.mark.peers),
        pytest.param("verl", "LIT_RLHF_VERL", marks=pytest.mark.peers),
        pytest.param("trl", "LIT_RLHF_TRL", marks=pytest.mark.trl),
    ],
)
def test_the_library_itself_scores_as_transformers(exported: Path, who: str, packages: str) -> None:
    script = Path(__file__).with_name("scores_elsewhere.py")
    words = [sys.executable, str(script), who, os.environ[packages], str(exported)]
    done = subprocess.run([*words, json.dumps(ROWS)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == pytest.approx(of_transformers(exported), abs=1e-2)
