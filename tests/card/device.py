"""A stand-in for a GPU, on machines without one: see `card.cpp`. It stays until the process that asks for it ends."""

import hashlib
import shutil
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils import cpp_extension

CARD = "card:0"
BUILDABLE = shutil.which("c++") is not None and shutil.which("ninja") is not None
_SOURCE = Path(__file__).with_name("card.cpp")


def build() -> None:
    """Compile the device where that isn't done yet, half a minute, and make it known to torch under its name."""
    digest = hashlib.sha256(_SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    directory = Path(tempfile.gettempdir(), f"lit-rlhf-card-{digest}")
    directory.mkdir(exist_ok=True)
    cpp_extension.load(
        f"card_{digest}",
        [str(_SOURCE)],
        extra_cflags=["-O0"],
        build_directory=str(directory),
        is_python_module=False,
    )
    torch.utils.rename_privateuse1_backend("card")
    torch._register_device_module("card", _module())
    torch.utils.generate_methods_for_privateuse1_backend()


def strategy() -> SingleDeviceStrategy:
    """Of a trainer that uses it."""
    return SingleDeviceStrategy(CARD, accelerator=_Card())


def _module() -> types.ModuleType:
    """What torch and Lightning ask of `torch.<device>`."""
    answers: dict[str, Any] = {
        "_is_in_bad_fork": False,
        "current_device": 0,
        "device_count": 1,
        "get_amp_supported_dtype": [torch.bfloat16, torch.float16],
        "get_rng_state": torch.zeros(
            1, dtype=torch.uint8
        ),  # nothing here draws from global generators
        "is_available": True,
        "is_initialized": True,
        "manual_seed_all": None,
        "set_rng_state": None,
        "synchronize": None,
    }
    module = types.ModuleType("torch.card")
    for name, answer in answers.items():
        setattr(module, name, lambda *_, answer=answer, **__: answer)
    return module


class _Card(Accelerator):
    """One card."""

    def setup_device(self, device: torch.device) -> None: ...

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:  # noqa: ARG004  (Lightning's interface)
        return [0]

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:  # noqa: ARG004  (see above)
        return [torch.device(CARD)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "card"
