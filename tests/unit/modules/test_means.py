"""Means of what is logged."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_rlhf.modules.means import Means


def test_means_of_several_devices_are_brought_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """DAPO adds numbers of the device to those that updates have left on the CPU."""
    to, places = Tensor.to, set()

    def move(tensor: Tensor, device: Any, *args: Any) -> Tensor:
        places.add(device)
        return to(torch.full_like(tensor, 2.0, device="cpu"), *args) if tensor.is_meta else tensor

    means = Means()
    means.add("there", torch.empty(3, device="meta"))  # as far from the CPU as a GPU
    means.add("here", torch.tensor([1.0, 3.0]))
    monkeypatch.setattr(Tensor, "to", move)
    assert means.compute() == {"there": 1.0, "here": 2.0}
    assert places == {torch.device("cpu")}
