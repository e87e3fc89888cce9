"""Scores of rows by a reward model as another library itself loads it: `scores_elsewhere.py WHO PACKAGES MODEL ROWS`.

What OpenRLHF and verl import for other things than loading a model (kernels, launchers) is replaced by nothing at all.
"""

import json
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

ABSENT = {
    *(
        "codetiming",
        "deepspeed",
        "flash_attn",
        "hydra",
        "omegaconf",
        "pylatexenc",
        "ray",
        "tensordict",
    ),
    *("torchdata", "vllm"),
}
Rows = list[list[int]]


class Absent(MetaPathFinder, Loader):
    """Finds the packages of `ABSENT`, in which every name stands for nothing."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        absent = name.partition(".")[0] in ABSENT
        return ModuleSpec(name, self, is_package=True) if absent else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return MagicMock(__spec__=spec, __path__=[], __name__=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def openrlhf(path: str, rows: Rows) -> list[float]:
    sys.meta_path.append(Absent())
    import torch
    from openrlhf.models import get_llm_for_sequence_regression

    model = get_llm_for_sequence_regression(path, "reward", attn_implementation="eager").float()
    model.eval()
    padded = [
        (torch.tensor([[*row, 0, 0]]), torch.tensor([[1] * len(row) + [0, 0]])) for row in rows
    ]
    with torch.no_grad():
        return [float(model(ids, mask)) for ids, mask in padded]


def verl(path: str, rows: Rows) -> list[float]:
    """By its loader of reward models, with another attention than FlashAttention 2, which needs a GPU."""
    sys.meta_path.append(Absent())
    import torch
    from transformers import AutoConfig, AutoModelForTokenClassification
    from verl.utils.model import load_valuehead_model

    load = AutoModelForTokenClassification.from_pretrained

    def loaded(*args: Any, **options: Any) -> Any:
        return load(*args, **{**options, "attn_implementation": "eager"})

    AutoModelForTokenClassification.from_pretrained = loaded
    config = AutoConfig.from_pretrained(path, num_labels=1, classifier_dropout=0.0)
    model = load_valuehead_model(path, torch.float32, config, trust_remote_code=False).eval()
    with torch.no_grad():
        return [float(model(torch.tensor([row])).logits[0, -1, 0]) for row in rows]


def trl(path: str, rows: Rows) -> list[float]:
    """By the model that its RewardTrainer would go on training, after an evaluation."""
    import tempfile

    import torch
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    data = Dataset.from_list([{"chosen": "the rain", "rejected": "the sun"}] * 4)
    with tempfile.TemporaryDirectory() as place:
        options = RewardConfig(output_dir=place, report_to=[], use_cpu=True, bf16=False)
        trainer = RewardTrainer(path, options, train_dataset=data, eval_dataset=data)
        assert trainer.evaluate()["eval_margin"] != 0
    with torch.no_grad():
        return [float(trainer.model.eval()(torch.tensor([row])).logits[0, 0]) for row in rows]


if __name__ == "__main__":
    who, packages, model, rows = sys.argv[1:]
    sys.path.append(packages)
    found = {"openrlhf": openrlhf, "trl": trl, "verl": verl}[who](model, json.loads(rows))
    sys.stdout.write("\n" + json.dumps(found))
