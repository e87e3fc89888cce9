"""`dtype: auto`."""

import logging

import pytest
import torch

from lit_rlhf.models import precision
from tests.unit.models.conftest import MakeBackbone


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_said", set())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(("fast", "taken"), [(True, "bfloat16"), (False, "float32")])
def test_auto_takes_what_the_cpu_multiplies_and_says_so(
    make: MakeBackbone,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fast: bool,
    taken: str,
) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: fast)
    said: list[str] = []
    monkeypatch.setattr(precision, "rank_zero_info", said.append)
    backbone = make(dtype="auto")
    assert backbone.spec.dtype == taken
    assert {p.dtype for p in backbone.model.parameters()} == {getattr(torch, taken)}
    assert len(said) == 1
    assert f"auto takes {taken}" in said[0]
    assert not caplog.records


@pytest.mark.parametrize("fast", [True, False])
def test_emulation_is_warned_of(
    make: MakeBackbone,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fast: bool,
) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: fast)
    with caplog.at_level(logging.WARNING):
        assert make(dtype="bfloat16").spec.dtype == "bfloat16"
        make(dtype="bfloat16")
    assert [("emulated" in record.message) for record in caplog.records] == [True] * (not fast)


@pytest.mark.parametrize(
    ("name", "value"), [("ATEN_CPU_CAPABILITY", "avx2"), ("ONEDNN_MAX_CPU_ISA", "AVX2")]
)
def test_limits_of_the_environment_count(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert not precision.cpu_multiplies_bfloat16()
