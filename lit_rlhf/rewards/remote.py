"""Rewards by servers: `lit-rlhf serve-reward`, or one of your own with the same interface."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import Any, Self, TypeGuard, get_args

import torch

from lit_rlhf.errors import ConfigurationError, LitRLHFError, ServiceError
from lit_rlhf.http import Endpoint, HTTPClient, addresses
from lit_rlhf.models import Backbone
from lit_rlhf.options import check_choice, check_option, is_number, is_whole
from lit_rlhf.replicas import Replicas
from lit_rlhf.rewards.base import OnFailure, Reward, as_scores, read_column
from lit_rlhf.rewards.model import refuse_too_long
from lit_rlhf.rewards.retokenize import plain_prompts, vocabulary_hash
from lit_rlhf.types import Completions, Scores

_PAUSE = 30.0
_UNSAID = {
    "model": "its reward",
    "chat_template": False,
    **dict.fromkeys(("vocabulary", "context", "score_mean", "score_std")),
}
"""What a server need not say of itself: of one that knows no tokens texts are asked."""


class _RewardServer:
    """One server, by its HTTP interface."""

    def __init__(self, client: HTTPClient) -> None:
        self.client = client

    def __str__(self) -> str:
        return f"The reward server at {self.client.endpoint.url}"

    def look(self, retries: int | None = None) -> Mapping[str, Any]:
        """What it says it is."""
        found = self.client.get("/health", retries)
        if not isinstance(found, dict) or not isinstance(found.get("weights"), str):
            raise ConfigurationError(
                f"{self} is no reward server: /health answers {str(found)[:200]!r}. Give the address of `lit-rlhf "
                "serve-reward`, or of a server of yours whose /health has a text `weights`, a name for what it "
                "scores by."
            )
        return _UNSAID | found

    def score(self, items: list[dict[str, Any]], weights: str) -> list[list[float]]:
        """Scores of the completions of each prompt."""
        found = self.client.post("/score", {"prompts": items})
        told = found if isinstance(found, dict) else {}
        if told.get("weights", weights) != weights:
            raise ServiceError(
                f"{self} holds other weights than at the start of the run: start it with the model that it had then."
            )
        scores = told.get("scores")
        counts = [len(item.get("completions") or item["completion_ids"]) for item in items]
        if not _are_scores(scores, counts):
            raise ServiceError(
                f"{self} answers {str(found)[:200]!r} where a list of finite numbers for each of {len(items)} prompts, "
                f"one for each of its completions, is due under `scores`."
            )
        return list(scores)


class HTTPReward(Reward):
    """The score by servers: of a reward model, by `lit-rlhf serve-reward` (see `ModelReward`), or by rules of your own.

    The policy's token ids are sent where the vocabulary is the same, so that the scores are those of `ModelReward` on
    the same kind of device: to the bit where a server scores a request by itself, and within the rounding of another
    batch where it scores several together. Otherwise texts are sent, as `ModelReward` would read them. Servers must
    hold the same weights; one that fails is left out, and its requests go to the others. It is asked again after half a
    minute, and each time it fails again after twice as long, up to eight minutes.

    Args:
        urls: Address of one server, or of several.
        api_key_env: Environment variable with their API key.
        concurrency: Requests in flight at a time, over all servers; at least 1.
        timeout: Most seconds that one request may take.
        retries: How often a request that failed for the moment is sent again; of several servers each once.
        prompts_per_request: Prompts, with all their samples, of one request; at least 1.
        cache: How many prompts with their completions are remembered with their scores, for those that come again; 0:
            none.
        normalize: As of `ModelReward`, by the numbers that the server's model was exported with.
        conversation_column: As of `ModelReward`.
        on_failure: What becomes of the completions of a request that failed for good: "raise" ends the run; "mean"
            gives them the mean of their prompt's others, or else of the batch; "skip" leaves them out of training,
            counted as `reward/failed`. Where every request fails, the run ends.

    Raises:
        ConfigurationError: A number out of its range, or an address that is none.

    A server of your own answers to `POST /score` and `GET /health`: docs/howto/serve_reward.md.
    """

    def __init__(
        self,
        urls: str | list[str],
        api_key_env: str | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 5,
        prompts_per_request: int = 16,
        cache: int = 0,
        normalize: bool = False,
        conversation_column: str | None = None,
        on_failure: OnFailure = "raise",
    ) -> None:
        super().__init__()
        self.urls = addresses(self, urls)
        whole = is_whole(prompts_per_request, 1)
        check_option(whole, self, "prompts_per_request", prompts_per_request, "1 or more")
        check_option(is_whole(cache, 0), self, "cache", cache, "0 or more")
        each = partial(Endpoint, api_key_env=api_key_env, concurrency=concurrency, timeout=timeout)
        retries = retries if len(self.urls) == 1 else min(retries, 1)
        self.endpoints = [each(url, retries=retries) for url in self.urls]
        self.prompts_per_request, self.cache = prompts_per_request, cache
        self.normalize, self.conversation_column = normalize, conversation_column
        self.on_failure = on_failure
        check_choice(self, "on_failure", on_failure, *get_args(OnFailure))
        self._known: OrderedDict[str, list[float]] = OrderedDict()
        self._servers: Replicas[_RewardServer] | None = None
        self._policy: Any = None
        self._health: Mapping[str, Any] = {}
        self._sends_ids = False

    @property
    def weights(self) -> str | None:
        """What its servers say they score by; None before they were asked."""
        return self._health.get("weights")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: Lightning copies a module's arguments, and connections can't be copied."""
        return self

    def attach(self, backbone: Backbone) -> None:
        """Ask the servers what they are, and compare the vocabulary.

        Raises:
            ConfigurationError: None answers, one is no reward server or refuses the key, or they differ in their
                weights; or texts must be sent and can't be.
        """
        if self._servers is not None:
            return
        servers = Replicas([_RewardServer(HTTPClient(each)) for each in self.endpoints], _PAUSE)
        found: dict[str, Mapping[str, Any]] = {}
        for server in list(servers.servers):
            try:
                found[str(server)] = server.look(retries=0)
            except ServiceError as error:
                servers.leave_out(server, error)
        if not found:
            raise ConfigurationError(
                f"No reward server answers ({servers.nobody()}). Start one: lit-rlhf serve-reward --path EXPORT --port "
                "8000"
            )
        if len({health["weights"] for health in found.values()}) > 1:
            models = ", ".join(f"{name}: {health['model']}" for name, health in found.items())
            raise ConfigurationError(
                f"The servers of HTTPReward.urls hold different weights ({models}): start all with the same --path."
            )
        self._health = next(iter(found.values()))
        self._policy = backbone.tokenizer
        self._sends_ids = vocabulary_hash(backbone.tokenizer) == self._health["vocabulary"]
        sends_messages = not self._sends_ids and self.conversation_column is not None
        if sends_messages and not self._health["chat_template"]:
            raise ConfigurationError(
                f"HTTPReward.conversation_column={self.conversation_column!r} is to be rendered with the chat template "
                f"of {self._health['model']!r}, which has none."
            )
        moments = self._health["score_mean"], self._health["score_std"]
        if self.normalize and (None in moments or moments == (0.0, 1.0)):  # of models without them
            raise ConfigurationError(
                f"HTTPReward.normalize=True needs the score_mean and score_std of {self._health['model']!r}, and its "
                "/health tells none. Use NormalizedReward around HTTPReward."
            )
        self._servers = servers

    def score(self, completions: Completions) -> Scores:
        """(N,) float32.

        Raises:
            ConfigurationError: Not attached; a prompt with its completion is too long; the one server refuses the key.
            ServiceError: No server is left, with what each of them said.
        """
        if self._servers is None:
            raise ConfigurationError(
                "HTTPReward knows no server yet: call attach(backbone) with the policy's backbone first."
            )
        self._ask_again(self._servers)
        items = self._items(completions)
        keys = [json.dumps(item) for item in items]
        missing = {k: item for k, item in zip(keys, items, strict=True) if k not in self._known}
        found = {key: self._known[key] for key in keys if key in self._known}
        found |= self._asked(self._servers, missing)
        samples = len(completions.tokens) // max(len(items), 1)
        values = [value for key in keys for value in found.get(key, [None] * samples)]
        for key in found if self.cache else ():
            self._known[key] = found[key]
            self._known.move_to_end(key)
            if len(self._known) > self.cache:
                self._known.popitem(last=False)
        scores = as_scores(values, completions, skip=self.on_failure == "skip")
        if not self.normalize:
            return scores
        total = (scores.total - self._health["score_mean"]) / self._health["score_std"]
        return replace(scores, total=total)

    def _asked(
        self, servers: Replicas[_RewardServer], missing: dict[str, dict[str, Any]]
    ) -> dict[str, list[float]]:
        keys, size = list(missing), self.prompts_per_request
        parts = [keys[start : start + size] for start in range(0, len(keys), size)]
        failures: list[LitRLHFError] = []

        def ask(numbered: tuple[int, list[str]]) -> list[list[float]]:
            number, part = numbered
            items, weights = [missing[key] for key in part], self._health["weights"]
            try:
                return servers.ask(number, lambda s: s.score(items, weights))
            except LitRLHFError as error:
                if self.on_failure == "raise":
                    raise
                failures.append(error)
                for server in servers.servers:  # the other requests may be better
                    servers.take_back(server)
                return []

        every = list(servers.servers[0].client.map(ask, enumerate(parts)))
        if failures and len(failures) == len(parts):
            raise failures[0]
        return {
            key: own
            for part, scores in zip(parts, every, strict=True)
            for key, own in zip(part, scores or (), strict=bool(scores))
        }

    def _items(self, completions: Completions) -> list[dict[str, Any]]:
        samples = len(completions.tokens) // max(len(completions.prompt_ids), 1)
        if self._sends_ids:
            prompts = _taken(completions.prompt_ids, completions.prompt_mask)
            tails = _taken(completions.tokens, completions.response_mask)
            self._check_lengths(prompts, tails)
            given: list[dict[str, Any]] = [{"prompt_ids": prompt} for prompt in prompts]
            columns: dict[str, list[Any]] = {"completion_ids": tails}
        else:
            given = self._texts(completions, samples)
            finished = completions.finished.tolist()
            columns = {"completions": list(completions.responses), "finished": finished}
        for i, item in enumerate(given):
            own = slice(i * samples, (i + 1) * samples)
            item.update({name: column[own] for name, column in columns.items()})
        return given

    def _texts(self, completions: Completions, samples: int) -> list[dict[str, Any]]:
        if self.conversation_column is None:
            return [{"prompt": text} for text in plain_prompts(self._policy, completions)]
        owner = "HTTPReward.conversation_column"
        column = read_column(completions, self.conversation_column, owner)
        return [{"messages": messages} for messages in column[::samples]]

    def _check_lengths(self, prompts: list[list[int]], tails: list[list[int]]) -> None:
        samples = len(tails) // max(len(prompts), 1)
        longest = max(len(prompts[i // samples]) + len(tail) for i, tail in enumerate(tails))
        refuse_too_long(longest, self._health["context"], self._health["model"])

    def _ask_again(self, servers: Replicas[_RewardServer]) -> None:
        """Take back those that answer again, with the same weights."""
        for server in servers.due():
            try:
                found = server.look(retries=0)
                if found["weights"] != self._health["weights"]:
                    raise ServiceError(f"{server} holds other weights than at the start.")
            except LitRLHFError as error:
                servers.leave_out(server, error)
            else:
                servers.take_back(server)


def _are_scores(scores: object, counts: Sequence[int]) -> TypeGuard[Sequence[list[float]]]:
    return (
        isinstance(scores, list)
        and len(scores) == len(counts)
        and all(
            isinstance(own, list)
            and len(own) == count
            and all(is_number(value) and isfinite(value) for value in own)
            for own, count in zip(scores, counts, strict=True)
        )
    )


def _taken(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[own].tolist() for row, own in zip(ids.cpu(), mask.bool().cpu(), strict=True)]
