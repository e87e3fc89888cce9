"""One vLLM server, by its HTTP interface (read from vLLM 0.32)."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_rlhf.errors import ConfigurationError, LitRLHFError
from lit_rlhf.http import HTTPClient
from lit_rlhf.models import Backbone
from lit_rlhf.rollout.threads import in_a_thread
from lit_rlhf.rollout.vllm.sampler import Completed, Request, Sampler, Version
from lit_rlhf.rollout.vllm.weights import shapes

_TEXT = "Two servers: which one's tokens are these? ¿Ü 42 €"
"""Read by both tokenizers at the start."""
_MESSAGE = re.compile(r'"message": ?"([^"]*)"')
"""Of an answer of vLLM that is an error."""
_TIED = "lm_head.weight"
"""Left out of files where it is the embeddings."""
_ADAPTERS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora"
_DEV = "VLLM_SERVER_DEV_MODE=1"
_NCCL = f'{_DEV} and --weight-transfer-config \'{{"backend":"nccl"}}\''
_PARAMETERS = (".weight", ".bias")
"""What names end with; files may hold buffers, too."""


class VLLMServer(Sampler):
    """A server; `look` must have been called before it is asked for anything, or `base` be set as it did.

    Args:
        client: For what may take long.
        quick: For what a server that works answers at once.
    """

    def __init__(self, client: HTTPClient, quick: HTTPClient) -> None:
        self._client, self._quick = client, quick
        self._url = client.endpoint.url
        self.base = ""  # the name of its model
        self._root = ""  # what it was started with: a directory, or a name on the hub
        self._adapters: set[str] = set()
        self._weights: str | None = None

    def __str__(self) -> str:
        return f"The vLLM server at {self._url}"

    def look(self, backbone: Backbone, longest: int, retries: int | None = None) -> bool:
        """Ask what it serves, and refuse what can't be sampled from.

        Returns whether it was started anew since the last look: weights that it had taken are gone.

        Args:
            backbone: Whose base it should hold.
            longest: Most tokens of a prompt with its completion.
            retries: Instead of the client's.

        Raises:
            ConfigurationError: It isn't vLLM, has another tokenizer, or takes no text as long as the longest.
            ServiceError: It doesn't answer.
        """
        what = "tell its models"
        models = self._part(self._quick.get("/v1/models", retries), "data", list, what)
        known = [model for model in models if isinstance(model, dict) and model.get("id")]
        bases = [model for model in known if model.get("parent") is None]
        if not bases:
            raise ConfigurationError(
                f"The server at {self._url} serves no model (/v1/models lists {models[:3]}), so nothing can be sampled "
                "from it. Start it with --model, and give VLLMServerEngine.urls the address of vLLM itself."
            )
        limit = bases[0].get("max_model_len")
        if isinstance(limit, int) and longest > limit:
            raise ConfigurationError(
                f"{self} takes {limit} tokens (--max-model-len); a prompt with sampling.max_new_tokens needs "
                f"{longest}. Start it with more, or shorten one of them."
            )
        base = str(bases[0]["id"])
        adapters = {str(model["id"]) for model in known} - {base}
        weights = self._weights
        if weights is not None:
            told = self._quick.get("/weight_info")
            weights = str(self._part(told, "weight_version", str, "name its weights"))
        anew = weights != self._weights or not self._adapters <= adapters
        if anew or not self.base:
            self._check_tokenizer(backbone)
        self.base, self._adapters, self._weights = base, adapters, weights
        self._root = str(bases[0].get("root") or "")
        return anew

    def holds(self, version: Version) -> bool:
        """As it said when it was last looked at."""
        return version.name in (self._adapters if version.is_adapter else {self._weights})

    def load_adapter(self, version: Version) -> None:
        """Have the server read it from its directory."""
        body = {"lora_name": version.name, "lora_path": str(version.path)}
        try:
            self._client.post("/v1/load_lora_adapter", body, retries=1, reads=False)
        except LitRLHFError as error:
            what = f"load the adapter {version.path}"
            raise self._with_way_out(error, what, _ADAPTERS) from error
        self._adapters.add(version.name)

    def unload_adapter(self, version: Version) -> None:
        """Have the server drop it."""
        self._adapters.discard(version.name)
        body = {"lora_name": version.name}
        self._quick.post("/v1/unload_lora_adapter", body, retries=0, reads=False)

    def load_weights(self, version: Version) -> None:
        """Have the server read whole weights from a directory, once it has finished what it is sampling.

        Raises:
            ConfigurationError: They don't fit into its model, which reading them would break; or it refuses.
            ServiceError: It doesn't answer.
        """
        asked = {"method": "reload_weights", "kwargs": {"weights_path": str(version.path)}}
        what = f"read the weights {version.path}"
        with self._changing(version, shapes(version.path), what, _DEV):
            self._client.post("/collective_rpc", asked, retries=0)
            self._client.post("/update_weight_version", {"new_version": version.name})

    def workers(self) -> int:
        """See `Sampler.workers`."""
        try:
            told = self._quick.get("/get_world_size")
        except LitRLHFError as error:
            raise self._with_way_out(error, "tell its workers", _NCCL) from error
        found: int = self._part(told, "world_size", int, "tell its workers")
        return found

    def join(self, info: dict[str, Any]) -> None:
        """See `Sampler.join`."""
        try:
            self._client.post("/init_weight_transfer_engine", {"init_info": info}, retries=0)
        except LitRLHFError as error:
            raise self._with_way_out(error, "receive weights by NCCL", _NCCL) from error

    def receive_weights(
        self, version: Version, weights: Mapping[str, Tensor], send: Callable[[], None]
    ) -> None:
        """See `Sampler.receive_weights`; raises as `load_weights`."""
        sizes = {name: list(weight.shape) for name, weight in weights.items()}
        update = {
            "names": list(sizes),
            "shapes": list(sizes.values()),
            "dtype_names": [str(x.dtype).removeprefix("torch.") for x in weights.values()],
        }
        with self._changing(version, sizes, "receive weights by NCCL", _NCCL):
            self._client.post("/start_weight_update", {}, retries=0)
            sent = in_a_thread(send, "sending weights")
            # What the server refuses is said here, and never waited for there.
            self._client.post("/update_weights", {"update_info": update}, retries=0)
            sent.result()
            named = {"weight_version": version.name}
            self._client.post("/finish_weight_update", named, retries=0)

    @contextmanager
    def _changing(
        self, version: Version, sizes: dict[str, list[int]], what: str, needed: str
    ) -> Iterator[None]:
        """Change whole weights within: nothing is sampled, and nothing kept of what was."""
        self._refuse_other_shapes(sizes)
        self._weights = None  # the server may say their name before its cache is empty
        try:
            self._client.post("/pause?mode=wait", {})
            try:
                yield
                emptied = self._client.post("/reset_prefix_cache", {})
                if not self._part(emptied, "success", bool, "empty its prefix cache"):
                    raise self._odd("that it could not", "empty its prefix cache")
            finally:
                self._client.post("/resume", {})
        except LitRLHFError as error:
            raise self._with_way_out(error, what, needed) from error
        self._weights = version.name

    def complete(
        self, requests: Sequence[Request], options: dict[str, Any], adapter: Version | None
    ) -> list[Completed]:
        """Sample, one request after the other."""
        asked = {"model": self.base if adapter is None else adapter.name, "return_token_ids": True}
        what = "complete a prompt"
        found = []
        for request in requests:
            body = {**asked, "prompt": request.prompt, "seed": request.seed, **options}
            choices = self._part(self._ask_to_complete(body), "choices", list, what)
            if len(choices) != 1:
                raise self._odd(f"{len(choices)} choices for one completion", what)
            found.append(self._completed(choices[0], int(options["max_tokens"]), what))
        return found

    def _ask_to_complete(self, body: dict[str, Any]) -> Any:
        try:
            return self._client.post("/v1/completions", body)
        except ConfigurationError as error:
            if "does not exist" not in str(error):
                raise
            raise ConfigurationError(
                f"{self} took {body['model']} and doesn't know it: are there several servers behind that address? "
                f"Name each in VLLMServerEngine.urls. {error}"
            ) from error

    def _refuse_other_shapes(self, ours: dict[str, list[int]]) -> None:
        """Compare with the files of the model that it was started with, where they can be seen from here."""
        theirs = shapes(Path(self._root)) if self._root else {}
        both = sorted(ours.keys() & theirs.keys())
        other = next((name for name in both if ours[name] != theirs[name]), None)
        lone = [name for name in sorted(ours.keys() ^ theirs.keys()) if name.endswith(_PARAMETERS)]
        if other is not None:
            differ = f"{other} has the shape {theirs[other]} there and {ours[other]} here"
        elif both and lone and lone != [_TIED]:
            side = "there" if lone[0] in theirs else "here"
            differ = f"{len(lone)} of them are on one side alone, such as {lone[0]}, only {side}"
        else:
            return
        raise ConfigurationError(
            f"{self} was started with {self._root}, into which the policy's weights don't fit: {differ}. "
            "Start it with the model that model.backbone.name names."
        )

    def _check_tokenizer(self, backbone: Backbone) -> None:
        """Compare a text's tokens, where the server has a tokenizer at all (--skip-tokenizer-init)."""
        body = {"prompt": _TEXT, "add_special_tokens": False}
        try:
            theirs = self._quick.post("/tokenize", body, retries=0)
        except LitRLHFError:
            return
        found = self._part(theirs, "tokens", list, "read a text")
        ours = list(backbone.tokenizer(_TEXT, add_special_tokens=False)["input_ids"])
        if found != ours:
            raise ConfigurationError(
                f"{self} has another tokenizer than the policy: it reads {_TEXT!r} as {found[:8]}..., the policy as "
                f"{ours[:8]}... Start it with the model, or the --tokenizer, that model.backbone names."
            )

    def _with_way_out(self, error: LitRLHFError, what: str, needed: str) -> LitRLHFError:
        said = str(error)
        message = _MESSAGE.search(said)
        why = (message[1].replace("\\'", "'") if message else said).rstrip(".")
        kind: type[LitRLHFError] = ConfigurationError
        lacks_adapter = "No adapter found" in said
        if "max_lora_rank" in said:
            way_out = "Start it with a --max-lora-rank that is no smaller than the policy's."
        elif "out of memory" in said:
            way_out = "Start it with a smaller --gpu-memory-utilization, or on a device of its own."
        elif "LoRA is not enabled" in said or ("HTTP 404" in said and not lacks_adapter):
            why, way_out = "it wasn't started for that", f"Start it with {needed}."
        elif needed == _NCCL:
            kind = type(error)
            started = f"was it started with {needed}, on other GPUs than the policy's?"
            way_out = f"Look at its log: {started}"
        else:
            kind = ConfigurationError if lacks_adapter else type(error)
            way_out = (
                "Look at its log: can it read that directory, or should sync.init_args.directory name one that "
                "both see? Is its model the policy's?"
            )
        stop = "" if why.endswith("?") else "."
        return kind(f"{self} can't {what}: {why}{stop} {way_out}")

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
            f"The server at {self._url} was asked to {what} and answered with {said}. Is that address in "
            "VLLMServerEngine.urls a vLLM server of version 0.10 or newer, with no other service in between?"
        )
