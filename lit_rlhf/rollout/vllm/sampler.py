"""One vLLM, whether this process owns it or it serves over HTTP: what it holds, and what it completes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Request(NamedTuple):
    """A completion to be sampled."""

    prompt: list[int]
    seed: int


class Completed(NamedTuple):
    """A sampled completion."""

    tokens: list[int]
    logprobs: list[float]
    stopped: bool
    """vLLM's word: ended by a token, not by the length limit."""


class Version(NamedTuple):
    """Weights as they were at one time, where vLLM can read them."""

    name: str
    """Never used twice: vLLM caches adapters, and the keys and values of prompts, by it."""
    number: int
    path: Path
    is_adapter: bool
    """Whether it goes on top of the base; else it takes the base's place."""

    @property
    def adapter(self) -> "Version | None":
        """What a request has to name."""
        return self if self.is_adapter else None


class Sampler(ABC):
    """One vLLM. `str` of it names it in messages."""

    @abstractmethod
    def holds(self, version: Version) -> bool:
        """Whether it would sample from this version."""

    @abstractmethod
    def load_adapter(self, version: Version) -> None:
        """Let it know an adapter."""

    @abstractmethod
    def unload_adapter(self, version: Version) -> None:
        """Let it forget an adapter."""

    @abstractmethod
    def load_weights(self, version: Version) -> None:
        """Have it replace the base, and forget what it cached of the one before."""

    @abstractmethod
    def complete(
        self, requests: Sequence[Request], options: dict[str, Any], adapter: Version | None
    ) -> list[Completed]:
        """Sample completions, in the order of the requests, with an adapter or from the base."""
