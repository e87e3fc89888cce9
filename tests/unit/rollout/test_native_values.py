"""Values of a head that the native engine takes from the states it samples from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.rollout import NativeEngine, Sampling, native
from lit_rlhf.rollout.steps import EAGER
from tests.reference.generations import make_prompts, make_request
from tests.tolerances import FP32_MODEL

VARIED = Sampling(
    max_new_tokens=16, stop_token_ids=list(range(60, 110))
)  # completions of many lengths


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("eagerness", [0, 8])
def test_values_are_those_of_a_pass_over_the_whole_sequence(
    tiny_model_dir: Path, num_samples: int, eagerness: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "pace_of", lambda _: EAGER._replace(worth_leaving=eagerness))
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    backbone.add_head("value", drawn=True)
    ids, mask = make_prompts()
    request = make_request(VARIED, num_samples)
    engine = NativeEngine(max_batch_size=4 * num_samples)
    found = engine.generate(backbone, replace(request, values="value"))
    assert NativeEngine().generate(backbone, request).values is None
    assert found.values is not None
    assert len(set(found.mask.sum(-1).tolist())) > 1
    for row, values in enumerate(found.values):
        prompt = ids[row // num_samples][mask[row // num_samples]]
        length = int(found.mask[row].sum())
        whole = torch.cat([prompt, found.tokens[row, :length]])[None]
        states = backbone.decoder(input_ids=whole).last_hidden_state[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(values[:length], backbone.head("value")(states), **FP32_MODEL)
        assert not values[length:].any()


def test_values_of_an_unknown_head_are_refused(tiny_model_dir: Path) -> None:
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    with pytest.raises(ConfigurationError, match=r"There is no head 'worth'; there are \[\]"):
        NativeEngine().generate(backbone, make_request(VARIED, values="worth"))
