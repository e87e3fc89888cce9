"""Fixtures for all tests: offline, seeded, with the environment put back afterwards.

Nothing of lit_rlhf is imported here at module level: jaxtyping's plugin must see `functional` and `objectives` imported
first by a test to check their shapes at run time.
"""

import atexit
import gc
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: two test processes on two cores, one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")

# Imports make millions of objects that stay: to search them for garbage takes longer than to make them.
gc.disable()
atexit.register(gc.freeze)


def pytest_collection_finish() -> None:
    """Everything is imported: from here on garbage is looked for, among what is new."""
    gc.freeze()
    gc.enable()


_LOOPBACK = ("localhost", "127.", "::1", "0.0.0.0", "::ffff:127.")


class NetworkBlockedError(RuntimeError):
    """A test wanted to leave the machine. Not an OSError, so that no client takes it for a network that is down."""


def _refuse_remote(host: object) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    local = name in (None, "", socket.gethostname()) or (
        isinstance(name, str) and name.startswith(_LOOPBACK)
    )
    if not local:
        message = f"tests run offline, but something wanted to reach {name!r}"
        raise NetworkBlockedError(message)


@pytest.fixture(autouse=True)
def _lightning_logs_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning keeps its log from the root, and so from `caplog`, where the root had no handler at its import."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection and name look-up that leaves this machine; Unix sockets and loopback pass."""
    getaddrinfo = socket.getaddrinfo

    def checked_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_remote(host)
        return getaddrinfo(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", checked_getaddrinfo)
    for method in ("connect", "connect_ex"):
        original = getattr(socket.socket, method)

        def checked(self: socket.socket, address: Any, _original: Any = original) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                _refuse_remote(address[0])
            return _original(self, address)

        monkeypatch.setattr(socket.socket, method, checked)


@pytest.fixture(autouse=True)
def restore_env() -> Iterator[None]:
    """Put the environment variables back: Lightning sets some (seeds, ranks, ports)."""
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def no_cache_at_home(
    restore_env: None, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Keep tokenized rows in the session's temporary directory, not in the home of whoever runs the tests."""
    monkeypatch.setenv("LIT_RLHF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def equal_models_are_checked_once(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """See `tests/once.py`; nothing is imported for it."""
    about_that = {"models", "rollout"} & set(
        request.path.relative_to(Path(__file__).parents[1]).parts
    )
    if "lit_rlhf.rollout" in sys.modules and not about_that:
        from tests import once

        once.use(monkeypatch)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed torch's global generator, which tests (but never the library) draw from."""
    import torch

    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny llama and its tokenizer. Read only: all tests of the session share it."""
    from lit_rlhf.testing import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def other_tokenizer_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama whose tokenizer gives the same text other ids: none of its special tokens and bytes agree."""
    from lit_rlhf.testing import make_tokenizer, write_tiny_model

    tokenizer = make_tokenizer(merges=("i n", "o n"), specials_last=True)
    return write_tiny_model(tmp_path_factory.mktemp("other-model"), seed=1, tokenizer=tokenizer)
