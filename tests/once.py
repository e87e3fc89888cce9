"""Checks of models at their loading, made once in each process of those that are alike.

Whether a decoder is run as transformers runs it, and whether an engine decodes what the forward computes, follows from
weights, classes, options and precision. Tests load the same few models a thousand times; all of these together, to the
last bit of the weights, tell whether one has passed. Not for the tests of models and engines, which are about that.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_rlhf.models import Backbone, backbone
from lit_rlhf.rollout import NativeEngine
from lit_rlhf.rollout.base import LocalEngine

_passed: set[Hashable] = set()


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the end of a test."""
    monkeypatch.setattr(backbone, "check_decoder", _check_decoder(backbone.check_decoder))
    monkeypatch.setattr(LocalEngine, "_compare", _compare(LocalEngine._compare))


def _check_decoder(check: Callable[..., None]) -> Callable[..., None]:
    def once(model: PreTrainedModel, runner: Any, lm_head: Any) -> None:
        options = _plain(runner)
        known = _known(model, options, lm_head and _plain(lm_head))
        if known not in _passed:
            check(model, runner, lm_head)
            if known is not None and options == _plain(runner):  # which is told of an obstacle
                _passed.add(known)

    return once


def _compare(compare: Callable[..., None]) -> Callable[..., None]:
    def once(engine: LocalEngine, model: Backbone, role: str, prompts: Sequence[int]) -> None:
        known = _known(model.model, _plain(engine), model.spec, role, tuple(prompts))
        if known not in _passed or type(engine) is not NativeEngine or engine.listeners:
            compare(engine, model, role, prompts)
            if known is not None and type(engine) is NativeEngine:
                _passed.add(known)

    return once


def _known(model: PreTrainedModel, *options: object) -> Hashable:
    """What decides; None where that isn't known."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if any(t.is_meta or t.dtype in (torch.int8, torch.uint8) for _, t in tensors):
        return None  # quantized weights have parts elsewhere
    layers = tuple((type(each), each.forward.__qualname__) for each in model.modules())
    precision = torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")
    weights = tuple((name, t.dtype, t.shape, hash(_bytes(t))) for name, t in tensors)
    return layers, model.config.to_json_string(use_diff=False), weights, precision, repr(options)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _plain(thing: object) -> list[tuple[str, object]]:
    """What an object has that is no object."""
    kinds = (bool, int, float, str, type(None))
    return sorted((name, value) for name, value in vars(thing).items() if isinstance(value, kinds))
