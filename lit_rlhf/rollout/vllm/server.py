"""A vLLM server, in an environment, on a device or on a machine of its own."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone
from lit_rlhf.rollout.vllm.base import Completed, Request, VLLMRollouts

COMMAND = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True python -m vllm.entrypoints.openai.api_server --model {model} --dtype "
    "{dtype} --port {port} --enable-lora --max-lora-rank 64 --logprobs-mode processed_logprobs --generation-config vllm"
)
"""Starts a server that can be used."""
_CONNECTIONS = 256


class VLLMServerEngine(VLLMRollouts):
    """A vLLM server that runs already; this process needs no vLLM.

    Start it with the policy's base, in its dtype (vLLM's own choice for float32 is bfloat16), and what the engine
    needs:

        VLLM_ALLOW_RUNTIME_LORA_UPDATING=True python -m vllm.entrypoints.openai.api_server --model MODEL --dtype
        bfloat16 --port 8000 --enable-lora --max-lora-rank 64 --logprobs-mode processed_logprobs --generation-config
        vllm

    The policy's LoRA adapter is loaded into it over HTTP, under a new name, whenever it has changed. What is said of
    log-probs, seeds and resuming at `VLLMEngine` holds here too. Anyone who can reach the server can load adapters into
    it: keep it on a network that is yours. Run by this project on CPU only, with one training process.

    Args:
        url: Of the server, such as http://127.0.0.1:8000.
        directory: Where adapters are written: the server reads them from there, so on another machine it must be on a
            file system that both see under the same path. Default: the system's directory for temporary files.
        timeout: Most seconds that a completion may take, its time in the server's queue included.

    Raises:
        ConfigurationError: The URL isn't one, or the timeout isn't positive.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        directory: Path | None = None,
        timeout: float = 600.0,
    ) -> None:
        super().__init__(directory)
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"VLLMServerEngine.url={url!r} must begin with http:// or https://."
            )
        if timeout <= 0:
            raise ConfigurationError(f"VLLMServerEngine.timeout={timeout} must be above 0 seconds.")
        self.url = url.rstrip("/")
        self.timeout = timeout
        self._session: requests.Session | None = None
        self._base = ""

    def start(self, backbone: Backbone) -> None:
        """Connect, and ask for the name of the base."""
        if self._session is not None:
            return
        session = requests.Session()
        session.trust_env = False  # no proxy stands between a trainer and its server
        session.mount(self.url, HTTPAdapter(pool_connections=1, pool_maxsize=_CONNECTIONS))
        try:
            answer = self._answer(
                session.get(f"{self.url}/v1/models", timeout=self.timeout), "tell its models"
            )
        except requests.RequestException as error:
            spec, port = backbone.spec, urlsplit(self.url).port or 80
            command = COMMAND.format(model=spec.name, dtype=spec.dtype, port=port)
            raise ConfigurationError(
                f"No vLLM server answers at {self.url} ({error}). Start one: {command}"
            ) from error
        models = self._part(answer, "data", list, "tell its models")
        bases = [
            model["id"]
            for model in models
            if isinstance(model, dict) and model.get("id") and model.get("parent") is None
        ]
        if not bases:
            raise ConfigurationError(
                f"The server at {self.url} serves no model (/v1/models lists {models[:3]}), so nothing can be sampled "
                "from it. Start it with --model, and give VLLMServerEngine.url the address of vLLM itself."
            )
        self._session = session
        self._base = str(bases[0])

    def load_adapter(self, name: str, number: int, path: Path) -> None:
        """Have the server read it."""
        self._post(
            "/v1/load_lora_adapter",
            {"lora_name": name, "lora_path": str(path)},
            "load a LoRA adapter",
        )

    def unload_adapter(self, name: str, number: int) -> None:
        """Have the server drop it."""
        self._post("/v1/unload_lora_adapter", {"lora_name": name}, "unload a LoRA adapter")

    def complete(
        self, requests: Sequence[Request], options: dict[str, Any], adapter: tuple[str, int] | None
    ) -> list[Completed]:
        """Sample, a request for each completion: one request has one seed."""
        model = self._base if adapter is None else adapter[0]

        def ask(request: Request) -> Completed:
            body = {
                "model": model,
                "prompt": request.prompt,
                "seed": request.seed,
                "return_token_ids": True,
                **options,
            }
            what = "complete a prompt"
            choices = self._part(self._post("/v1/completions", body, what), "choices", list, what)
            if len(choices) != 1:
                raise self._odd(f"{len(choices)} choices for one completion", what)
            return self._completed(choices[0], int(options["max_tokens"]), what)

        with ThreadPoolExecutor(max_workers=min(len(requests), _CONNECTIONS)) as pool:
            return list(pool.map(ask, requests))

    def _post(self, path: str, body: dict[str, Any], what: str) -> Any:
        assert self._session is not None
        try:
            return self._answer(
                self._session.post(f"{self.url}{path}", json=body, timeout=self.timeout), what
            )
        except requests.Timeout as error:
            raise ConfigurationError(
                f"The vLLM server at {self.url} took more than timeout={self.timeout} seconds to {what}. Raise "
                "VLLMServerEngine.timeout, or sample fewer or shorter completions at a time."
            ) from error
        except requests.RequestException as error:
            raise ConfigurationError(
                f"The vLLM server at {self.url} went away while it was to {what} ({error}). Look at its log; what was "
                "trained so far is in the last checkpoint."
            ) from error

    def _answer(self, response: requests.Response, what: str) -> Any:
        if response.ok:
            if "json" not in response.headers.get("content-type", ""):
                return None
            try:
                return response.json()
            except ValueError as error:
                raise self._odd(f"something that is no JSON ({error})", what) from error
        way_out = "."
        if response.status_code == requests.codes.not_found and what.endswith("adapter"):
            way_out = (
                ": start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora, and set "
                "VLLMServerEngine.directory to a place that it can read."
            )
        raise ConfigurationError(
            f"The vLLM server at {self.url} refused to {what}{way_out} It says "
            f"({response.status_code}): {response.text[:500]}"
        )

    def _completed(self, choice: Any, most: int, what: str) -> Completed:
        tokens = self._part(choice, "token_ids", list, what)
        found = self._part(self._part(choice, "logprobs", dict, what), "token_logprobs", list, what)
        if len(tokens) != len(found) or not 0 < len(tokens) <= most:
            counts = f"{len(tokens)} tokens with {len(found)} log-probs"
            raise self._odd(f"{counts} where 1 to {most} were asked for", what)
        if not all(isinstance(token, int) and token >= 0 for token in tokens):
            raise self._odd("token ids that are no whole numbers", what)
        if not all(isinstance(number, int | float) for number in found):
            raise self._odd("log-probs that are no numbers", what)
        return Completed(tokens, found, choice.get("finish_reason") == "stop")

    def _part(self, answer: Any, name: str, kind: type, what: str) -> Any:
        part = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(part, kind):
            raise self._odd(f"no {kind.__name__} {name!r}, but {str(answer)[:200]!r}", what)
        return part

    def _odd(self, said: str, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"The server at {self.url} was asked to {what} and answered with {said}. Is VLLMServerEngine.url the "
            "address of a vLLM server of version 0.10 or newer, with no other service in between?"
        )
