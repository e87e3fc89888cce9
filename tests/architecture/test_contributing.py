"""CONTRIBUTING.md and all other pages speak of files that exist, and its examples work."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_rlhf.data import InvalidRowError
from lit_rlhf.modules import PolicyModule
from lit_rlhf.types import Completions, EvaluatedRollout, Generation, Prompts, Scores
from tests.tolerances import FP32

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def examples(tmp_path: Path) -> dict[str, Any]:
    """The classes of all Python blocks."""
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) == 3
    for number, block in enumerate(blocks):
        path = tmp_path / f"example_{number}.py"
        path.write_text(block, encoding="utf-8")
        names |= runpy.run_path(str(path))
    return names


def test_files_exist() -> None:
    named = {
        (page.name, path)
        for place in (".", "docs", "docs/*", "benchmarks")
        for page in ROOT.glob(f"{place}/*.md")
        if page.name != "CHANGELOG.md"  # what was once
        for path in re.findall(
            r"`((?:lit_rlhf|tests|configs|benchmarks|docs)/[\w./-]*)`", page.read_text("utf-8")
        )
    }
    assert len(named) > 100
    assert not sorted((page, path) for page, path in named if not (ROOT / path).exists())


def test_every_folder_is_on_the_map() -> None:
    folders = {path.parent.name for path in (ROOT / "lit_rlhf").glob("*/__init__.py")}
    assert not sorted(folder for folder in folders if f"| `lit_rlhf/{folder}/` |" not in TEXT)


def test_algorithm(examples: dict[str, Any]) -> None:
    module = examples["MedianPolicyModule"]
    assert issubclass(module, PolicyModule)
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    rollout = EvaluatedRollout(
        Prompts(torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2, dtype=torch.bool)),
        Generation(
            torch.zeros(3, 2, dtype=torch.int64), mask, finished=torch.ones(3, dtype=torch.bool)
        ),
        Scores(torch.zeros(3)),
        old_logprobs=torch.zeros(3, 2),
        ref_logprobs=torch.zeros(3, 2),
    )
    rewards = torch.tensor([[0.0, 1.0], [5.0, 0.0], [1.0, 1.0]])
    shaped = SimpleNamespace(shape_rewards=lambda rollout: rewards)
    advantages = module.estimate(shaped, rollout).advantages
    torch.testing.assert_close(
        advantages, torch.tensor([[-1.0, -1.0], [3.0, 0.0], [0.0, 0.0]]), **FP32
    )


def test_data_set(examples: dict[str, Any]) -> None:
    answers = [
        {"text": "so-so", "stars": 3},
        {"text": "best", "stars": 5},
        {"text": "worst", "stars": 1},
    ]
    (record,) = examples["BestAndWorst"]()({"question": "how?", "answers": answers})
    assert (record.prompt, record.completions) == ("how?", ("best", "worst"))
    assert record.fields == {"margin": 4.0}
    with pytest.raises(InvalidRowError, match="no answer is better"):
        examples["BestAndWorst"]()({"question": "how?", "answers": answers[:1] * 2})
    with pytest.raises(InvalidRowError, match="no column 'answers'"):
        examples["BestAndWorst"]()({"question": "how?"})


def test_reward(examples: dict[str, Any]) -> None:
    completions = Completions(
        prompt_ids=torch.zeros(1, 1, dtype=torch.int64),
        prompt_mask=torch.ones(1, 1, dtype=torch.bool),
        tokens=torch.zeros(2, 1, dtype=torch.int64),
        response_mask=torch.ones(2, 1, dtype=torch.bool),
        finished=torch.ones(2, dtype=torch.bool),
        prompts=["", ""],
        responses=["one two three", ""],
    )
    scores = examples["Brevity"](limit=1).score(completions).total
    torch.testing.assert_close(scores, torch.tensor([-2.0, 0.0]), **FP32)
