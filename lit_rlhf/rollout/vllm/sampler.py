"""One vLLM, whether this process owns it or it serves over HTTP: what it holds, and what it completes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.rollout.base import Sampling


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

    def workers(self) -> int:
        """How many processes hold its weights."""
        raise self._only_files()

    def join(self, info: dict[str, Any]) -> None:
        """Have its workers join a group, by what vLLM's `init_weight_transfer_engine` is to be told."""
        raise self._only_files()

    def receive_weights(
        self, version: Version, weights: Mapping[str, Tensor], send: Callable[[], None]
    ) -> None:
        """As `load_weights`, from the group.

        Args:
            version: What they are.
            weights: Names, shapes and types of what `send` sends, in this order.
            send: Called, in a thread of its own, when they are waited for.
        """
        raise self._only_files()

    def _only_files(self) -> ConfigurationError:
        return ConfigurationError(f"{self} reads weights from files; NCCLSync is for servers.")

    @abstractmethod
    def complete(
        self, requests: Sequence[Request], options: dict[str, Any], adapter: Version | None
    ) -> list[Completed]:
        """Sample completions, in the order of the requests, with an adapter or from the base."""


def sampling_options(sampling: Sampling, ends: list[int]) -> dict[str, Any]:
    """Options of a request, none left to the defaults of a model's or server's configuration."""
    return {
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": sampling.min_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": ends,
        "ignore_eos": True,  # it is among the stop tokens, if it is an end at all
        "logprobs": 0,  # of the sampled token alone
    }
