"""Tiny models of several architectures, and batches for them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from lit_rlhf.types import BranchedBatch
from tests.reference.branches import row
from tests.reference.models import Row

MakeBackbone = Callable[..., Backbone]

ROWS: list[Row] = [
    ([11, 12, 13, 14, 15], [[21, 22, 23], [24, 25, 26, 27]]),
    ([31, 32, 33], [[41], [42, 43, 44]]),
    ([51], [[52, 53, 54, 55], [56, 57]]),
]
LORA = LoraSpec(rank=4, alpha=8.0)

GEMMA2 = {
    "model_type": "gemma2",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 64,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
    "initializer_range": 0.2,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.2,
    "resid_pdrop": 0.3,
    "attn_pdrop": 0.3,
}


def branched(rows: Sequence[Row], extra: int = 0) -> BranchedBatch:
    """A batch of rows, padded to the longest and by `extra` more."""
    width = max(len(prompt) + sum(map(len, branches)) for prompt, branches in rows) + extra
    columns = zip(*(row(prompt, branches, width) for prompt, branches in rows), strict=True)
    ids, owners, positions = (torch.tensor(column) for column in columns)
    return BranchedBatch(input_ids=ids, branch_ids=owners, position_ids=positions)


def shake(backbone: Backbone, role: str, seed: int = 1, size: float = 0.1) -> None:
    """Move an adapter away from the identity."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in backbone.named_parameters():
        if f".{role}." in name and ".lora_" in name:
            parameter.data.add_(torch.randn(parameter.shape, generator=random) * size)


def gradients(backbone: Backbone) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.fixture
def rows() -> list[Row]:
    return ROWS


@pytest.fixture
def batch() -> BranchedBatch:
    return branched(ROWS)


@pytest.fixture(scope="session")
def model_dirs(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Path]:
    """Saved tiny models with one tokenizer: llama, gemma2 (soft caps, sliding window), gpt2 (tied, Conv1D)."""
    from lit_rlhf.models.loading import load_model

    dirs = {"llama": tiny_model_dir}
    for config in (GEMMA2, GPT2):
        name = config["model_type"]
        model, tokenizer = load_model(
            ModelSpec(config=config, tokenizer=str(tiny_model_dir), init_seed=3)
        )
        dirs[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(dirs[name])
        tokenizer.save_pretrained(dirs[name])
    return dirs


@pytest.fixture
def make(tiny_model_dir: Path) -> MakeBackbone:
    """Build a backbone on the tiny llama (or `name`)."""

    def build(**options: object) -> Backbone:
        arguments = {key: options.pop(key) for key in ("lm_head", "trainable") if key in options}
        return Backbone.load(ModelSpec(**{"name": str(tiny_model_dir), **options}), **arguments)

    return build
