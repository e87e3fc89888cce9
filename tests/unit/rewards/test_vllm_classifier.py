"""A reward model's adapter, served by vLLM as docs/howto/serve_reward.md says: `pytest -m vllm`."""

from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_rlhf.models import Backbone, LoraSpec, ModelSpec, export_reward
from lit_rlhf.testing import write_tiny_model
from tests.unit.rollout.real_vllm import LORA, serving_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]
ROWS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [20, 30, 40], [50, 60, 70, 80, 90, 100, 110, 120]]


def test_scores_are_those_of_transformers(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "model", hidden_size=128, head_dim=32)
    backbone = Backbone.load(ModelSpec(name=str(base), lora=LoraSpec(rank=4)))
    backbone.add_adapter("reward")
    backbone.add_head("reward")
    noise = torch.Generator().manual_seed(1)
    head = backbone.heads["reward"].get_parameter("weight")
    for weight in (*backbone.adapter_weights("reward").values(), head):
        weight.data.normal_(std=0.1, generator=noise)
    export_reward(backbone, tmp_path / "adapter", merge=False)
    export_reward(backbone, tmp_path / "whole", merge=True)
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    with torch.no_grad():
        expected = [float(whole(torch.tensor([row])).logits[0, 0]) for row in ROWS]
    assert max(expected) - min(expected) > 0.1
    options = (
        *LORA,
        *("--runner", "pooling", "--convert", "classify", "--hf-overrides", '{"num_labels": 1}'),
        *("--lora-modules", f"rm={tmp_path / 'adapter'}"),
    )
    with serving_vllm(base, tmp_path, options=options) as (server,):
        body = {"model": "rm", "input": ROWS, "use_activation": False}
        answer = httpx.post(f"{server.url}/classify", json=body, timeout=120).json()
    found = [row["probs"][0] for row in answer["data"]]
    assert found == pytest.approx(expected, abs=1e-3)
