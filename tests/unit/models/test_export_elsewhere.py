"""Reward models as OpenRLHF and verl load them: classes built as theirs are, since the packages need a GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaModel,
    LlamaPreTrainedModel,
)

from lit_rlhf.functional.branches import branch_layout, expand_branches
from lit_rlhf.models import export_reward
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
