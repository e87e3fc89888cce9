"""vLLM servers, in an environment, on devices or on machines of their own."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lit_rlhf.distributed import num_ranks, rank
from lit_rlhf.errors import ConfigurationError, LitRLHFError, ServiceError
from lit_rlhf.http import Endpoint, HTTPClient, addresses
from lit_rlhf.listening import is_loopback
from lit_rlhf.models import Backbone
from lit_rlhf.options import check_option, is_number
from lit_rlhf.replicas import Replicas
from lit_rlhf.rollout.vllm.base import VLLMRollouts
from lit_rlhf.rollout.vllm.client import VLLMServer
from lit_rlhf.rollout.vllm.sampler import Completed, Request, Version
from lit_rlhf.rollout.vllm.weights import AdapterSync, WeightSync

COMMAND = (
    "{environment} python -m vllm.entrypoints.openai.api_server --model {model} --dtype {dtype} --host {host} "
    "--port {port} {flags}--logprobs-mode processed_logprobs --generation-config vllm"
)
"""Starts a server that can be used."""
_CONNECTIONS = 256
_QUICK = 30.0
"""Seconds in which a server that works tells its models."""
_PAUSE = 1.0
"""Seconds between two looks at servers that are waited for."""

_log = logging.getLogger(__name__)


class _Ready(NamedTuple):
    """What the first process tells the others."""

    version: Version | None
    bases: list[str | None]
    """By server, the name of its model; None: it is left out."""


class VLLMServerEngine(VLLMRollouts[_Ready]):
    """vLLM servers that run already; this process needs no vLLM.

    Start each with the policy's base, in its dtype (vLLM's own choice for float32 is bfloat16), and what the engine
    needs:

        VLLM_ALLOW_RUNTIME_LORA_UPDATING=True python -m vllm.entrypoints.openai.api_server --model MODEL --dtype
        bfloat16 --host 127.0.0.1 --port 8000 --enable-lora --max-lora-rank 64 --logprobs-mode processed_logprobs
        --generation-config vllm

    The policy's weights are brought to every server, by `sync`, before one of them is asked for a completion of that
    version, and the log-probs of a few tokens compared after each change. The samples of a prompt go to one server,
    prompts take turns. A server that fails is left out, and its requests go to the others; it is asked again after a
    while, and takes part once it holds the weights. When none is left, it waits for one (`wait`). Training processes
    share the servers: the first brings the weights, each asks for its own prompts.

    What is said of log-probs, seeds and resuming at `VLLMEngine` holds here too. Anyone who can reach a server can load
    adapters into it, and without `--host` that is everyone on its networks: for another host than 127.0.0.1 take a
    network that is yours, and a key (`--api-key`), which only its paths under /v1 ask for. Run on CPU only.

    Args:
        urls: Of the server, such as http://127.0.0.1:8000, or of several.
        sync: How weights come to them: `AdapterSync()` (default) or `DiskSync()`, whose `directory` must be on a file
            system that the servers share, or `NCCLSync()`.
        api_key_env: Environment variable that holds the servers' API key. None: no key.
        timeout: Most seconds that a completion may take, its time in the server's queue included.
        wait: Seconds to wait at the start for servers that don't answer yet, and in training, when none is left, for
            one that is started again: it gets the weights, and the rollout is sampled anew.
        ask_again: Seconds after which a server that failed is asked again; each time it fails again twice as many, up
            to 16 times as many.

    Raises:
        ConfigurationError: An option is out of range.
    """

    samples_elsewhere = True

    def __init__(
        self,
        urls: str | list[str] = "http://127.0.0.1:8000",
        sync: WeightSync | None = None,
        api_key_env: str | None = None,
        timeout: float = 600.0,
        wait: float = 0.0,
        ask_again: float = 30.0,
    ) -> None:
        super().__init__(sync or AdapterSync())
        self.urls = addresses(self, urls)
        for name, value in (("timeout", timeout), ("ask_again", ask_again)):
            check_option(is_number(value) and value > 0, self, name, value, "above 0 seconds")
        check_option(is_number(wait) and wait >= 0, self, "wait", wait, "0 seconds or more")
        self.api_key_env, self.timeout, self.wait = api_key_env, timeout, wait
        # One server is asked again itself; of several, another does it sooner.
        retries = 5 if len(self.urls) == 1 else 1
        asks = partial(Endpoint, api_key_env=api_key_env, concurrency=_CONNECTIONS, retries=retries)
        servers = [
            VLLMServer(
                HTTPClient(asks(url, timeout=timeout)),
                HTTPClient(asks(url, timeout=min(timeout, _QUICK))),
            )
            for url in self.urls
        ]
        self.servers = Replicas(servers, ask_again)
        self._started = False

    def bring(self, backbone: Backbone, role: str, prompt: list[int], longest: int) -> _Ready:
        """Bring a role's weights to every server that answers.

        Raises:
            ConfigurationError: At the start, a server isn't what it should be, or none answers.
            ServiceError: Later on, none is left.
        """
        version = self.sync.publish(backbone, role)

        def ready(asked: list[VLLMServer]) -> list[VLLMServer]:
            fit = self._each(asked, lambda each: self._look(each, backbone, longest), len(asked))
            fit = self._each(fit, lambda each: self.check_base(each, backbone, prompt, version))
            if version is None:
                return fit
            new = [server for server in fit if not server.holds(version)]
            loaded = self._each(new, lambda each: self.sync.load(each, version), len(new))
            check = self.probe.check
            right = self._each(loaded, lambda each: check(each, backbone, role, prompt, version))
            return [server for server in fit if server not in new or server in right]

        fit = ready(self.servers.live() + self.servers.due())
        if not fit and not self._started:
            raise self._nobody_at_all(backbone, self.servers.nobody())
        fit = fit or self._wait_for_one(ready)
        for server in fit:
            self.servers.take_back(server)
        self._started = True
        self.sync.retire(fit)
        servers = self.servers.servers
        return _Ready(version, [server.base if server in fit else None for server in servers])

    def complete(
        self, prompts: Sequence[Sequence[Request]], options: dict[str, Any], held: _Ready
    ) -> list[Completed]:
        """Sample, a request for each completion: one request has one seed."""
        for server, base in zip(self.servers.servers, held.bases, strict=True):
            if base is not None:
                server.base = base
                self.servers.take_back(server)
            elif server in self.servers.live():
                self.servers.leave_out(server, ServiceError(f"{server} doesn't answer."))
        adapter = None if held.version is None else held.version.adapter
        # Prompts take turns, those of all processes together.
        keys = range(rank(), len(prompts) * num_ranks(), num_ranks())
        keyed = [(key, each) for key, own in zip(keys, prompts, strict=True) for each in own]

        def ask(item: tuple[int, Request]) -> Completed:
            key, request = item
            return self.servers.ask(key, lambda s: s.complete([request], options, adapter)[0])

        with ThreadPoolExecutor(min(len(keyed), _CONNECTIONS)) as pool:
            return list(pool.map(ask, keyed))

    def _each(
        self, servers: list[VLLMServer], function: Callable[[VLLMServer], None], at_once: int = 1
    ) -> list[VLLMServer]:
        """Those of the servers that a function does not fail with; others are left out, or refused at the start."""

        def attempt(server: VLLMServer) -> LitRLHFError | None:
            try:
                function(server)
            except LitRLHFError as error:
                return error
            return None

        with ThreadPoolExecutor(max(at_once, 1)) as pool:
            failures = list(pool.map(attempt, servers))
        for server, failure in zip(servers, failures, strict=True):
            if isinstance(failure, ConfigurationError) and not self._started:
                raise failure
            if failure is not None:
                self.servers.leave_out(server, failure)
        return [s for s, failure in zip(servers, failures, strict=True) if failure is None]

    def _look(self, server: VLLMServer, backbone: Backbone, longest: int) -> None:
        """See what a server is, waiting for it at the start."""
        until = time.monotonic() + (0.0 if self._started else self.wait)
        while True:
            try:
                if server.look(backbone, longest, retries=None if self._started else 0):
                    self.forget(server)
            except ServiceError:
                if time.monotonic() >= until:
                    raise
                time.sleep(_PAUSE)
            else:
                return

    def _wait_for_one(
        self, ready: Callable[[list[VLLMServer]], list[VLLMServer]]
    ) -> list[VLLMServer]:
        """Ask all servers again and again, until one is ready; they were, before."""
        until = time.monotonic() + self.wait
        error = self.servers.nobody()
        if self.wait:
            _log.warning("No vLLM server is left; waiting %g seconds for one. %s", self.wait, error)
        while isinstance(error, ServiceError) and time.monotonic() < until:
            time.sleep(_PAUSE)
            if fit := ready(self.servers.servers):
                return fit
            error = self.servers.nobody()
        raise error

    def _nobody_at_all(self, backbone: Backbone, error: LitRLHFError) -> ConfigurationError:
        spec, address = backbone.spec, urlsplit(self.urls[0])
        host, key = address.hostname or "", self.api_key_env or "SOME_KEY"
        command = COMMAND.format(
            environment=self.sync.environment,
            flags=self.sync.flags,
            model=spec.name,
            dtype=spec.dtype,
            host=host,
            port=address.port or 80,
        )
        return ConfigurationError(
            f"No vLLM server at {', '.join(self.urls)} can be used. {error} Start one: {command}"
            + ("" if is_loopback(host) and not self.api_key_env else f" --api-key ${key}")
        )
