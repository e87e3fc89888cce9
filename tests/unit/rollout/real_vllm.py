"""vLLM itself, served on this machine: for tests under the marker `vllm`."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

HERE = importlib.util.find_spec("vllm") is not None
_PYTHON = os.environ.get("LIT_RLHF_VLLM_PYTHON") or (sys.executable if HERE else None)
_STARTUP_SECONDS = 600
_COMMON = (
    *("--dtype", "float32", "--host", "127.0.0.1", "--enforce-eager", "--max-model-len", "512"),
    *("--kv-cache-memory-bytes", str(2**27)),
)
LORA = ("--enable-lora", "--max-lora-rank", "16")
PLAIN = ("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm")
SAMPLING = (*LORA, *PLAIN)


class RealVLLM:
    """A server that can be started, killed and started again under the same address."""

    def __init__(self, model: Path, log: Path, options: Sequence[str] = SAMPLING) -> None:
        if _PYTHON is None:
            pytest.skip(
                "vLLM isn't installed here, and LIT_RLHF_VLLM_PYTHON names no interpreter that has it"
            )
        self.model, self.log, self.options = model, log, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin; `wait` says when it answers."""
        environment = os.environ | {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_SERVER_DEV_MODE": "1",
        }
        environment.pop("PYTHONPATH", None)
        words = ["--model", str(self.model), "--port", str(self.port), *_COMMON, *self.options]
        with self.log.open("a") as file:
            self._process = subprocess.Popen(
                [str(_PYTHON), "-m", "vllm.entrypoints.openai.api_server", *words],
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,  # its engine is a process of its own, and dies with it
            )

    def answers(self) -> bool:
        """Whether it does now."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def wait(self) -> None:
        """Until it answers."""
        assert self._process is not None
        deadline = time.monotonic() + _STARTUP_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if self.answers():
                return
            time.sleep(1)
        pytest.fail(f"the server didn't start:\n{self.log.read_text()[-4000:]}")

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Send the signal to all its processes."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signum)
            self._process.wait(60)


@contextmanager
def serving_vllm(
    model: Path, directory: Path, count: int = 1, options: Sequence[str] = SAMPLING
) -> Iterator[list[RealVLLM]]:
    """Servers that answer, and are gone afterwards."""
    servers = [RealVLLM(model, directory / f"server-{i}.log", options) for i in range(count)]
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.stop(signal.SIGKILL)
