"""A StopIteration of a reward or an engine is an error, not the end of the data."""

from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import GRPOPolicyModule
from lit_rlhf.rollout import NativeEngine
from tests.unit.callbacks.standins import quiet_trainer
from tests.unit.modules.policies import CountVowels, prompt_loader


class Exhausted(CountVowels):
    def score(self, completions: Any) -> Any:
        return next(iter([]))


class ExhaustedEngine(NativeEngine):
    def generate(self, *given: Any) -> Any:
        return next(iter([]))


@pytest.mark.parametrize("part", ["reward", "engine"])
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_it_ends_the_run_with_its_place(
    tiny_model_dir: Path, tmp_path: Path, part: str, verb: str
) -> None:
    reward = Exhausted() if part == "reward" else CountVowels()
    engine = ExhaustedEngine() if part == "engine" else NativeEngine()
    module = GRPOPolicyModule(ModelSpec(name=str(tiny_model_dir)), reward, engine=engine)
    trainer = quiet_trainer(tmp_path, [], limit_val_batches=1)
    step = "training_step" if verb == "fit" else "validation_step"
    with pytest.raises(RuntimeError, match=f"GRPOPolicyModule.{step} let a StopIteration out"):
        getattr(trainer, verb)(module, prompt_loader(tiny_model_dir))
