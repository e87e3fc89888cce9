"""A tiny model in vLLM's place: in this process, and as a server on loopback that speaks vLLM's HTTP."""

import copy
import shutil
import threading
from base64 import b64decode
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mktemp
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed import FileStore, ProcessGroupGloo

from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from lit_rlhf.rollout import NativeEngine, RolloutRequest, Sampling
from lit_rlhf.rollout.base import completion_logprobs
from lit_rlhf.rollout.vllm.sampler import Completed, Request, Sampler, Version
from lit_rlhf.types import Prompts
from tests.loopback import Answer, Request as Asked


class FakeVLLM(Sampler):
    """A backbone of its own that reads weights from files, and samples as the native engine does."""

    def __init__(self, model_dir: Path, raw: bool = False, own_stops: Sequence[int] = ()) -> None:
        self.model_dir, self.raw, self.own_stops = model_dir, raw, list(own_stops)
        self.model = copy.deepcopy(self._first(model_dir))
        self.loaded: list[str] = []
        self.weights = "default"
        self.asked = 0

    @staticmethod
    @cache
    def _first(path: Path) -> Backbone:
        """Many of a session begin with the same one."""
        return FakeVLLM._load(path)

    @staticmethod
    def _load(path: Path) -> Backbone:
        return Backbone.load(ModelSpec(name=str(path), lora=LoraSpec(rank=4)), trainable=False)

    def __str__(self) -> str:
        return "The fake"

    def holds(self, version: Version) -> bool:
        return version.name in ([*self.loaded, self.weights])

    def load_adapter(self, version: Version) -> None:
        self.model.add_adapter(version.name, path=str(version.path), trainable=False)
        self.loaded.append(version.name)

    def unload_adapter(self, version: Version) -> None:
        self.loaded.remove(version.name)

    def load_weights(self, version: Version) -> None:
        self.model = self._load(version.path)
        self.weights = version.name

    def complete(
        self, requests: Sequence[Request], options: dict[str, Any], adapter: Version | None
    ) -> list[Completed]:
        self.asked += len(requests)
        role = adapter.name if adapter else "reference"
        return [self.sample(request, options, role) for request in requests]

    def sample(self, request: Request, options: dict[str, Any], role: str) -> Completed:
        sampling = Sampling(
            options["max_tokens"],
            options["temperature"],
            options["top_k"],
            options["top_p"],
            options["min_tokens"],
            options["stop_token_ids"] + self.own_stops,
        )
        ids, seeds = torch.tensor([request.prompt]), torch.tensor([request.seed])
        prompts = Prompts(ids, torch.ones_like(ids, dtype=torch.bool))
        found = NativeEngine().generate(
            self.model, RolloutRequest(prompts, sampling, seeds, role=role)
        )
        tokens = found.tokens[0].tolist()
        logprobs = (
            found.logprobs[0]
            if not self.raw
            else completion_logprobs(self.model, ids[0], torch.tensor(tokens), None)
        )
        return Completed(tokens, logprobs.tolist(), bool(found.finished[0]))


_PATHS = {"completions": "complete"}
_UPDATE = ("names", "dtype_names", "shapes")


class GlooGroup:
    """What NCCL does, between threads on CPU: a group that is joined by a number, here where to meet."""

    def __init__(self, size: int, number: bytes, rank: int = 0) -> None:
        store = FileStore(number.rstrip(b"\0").decode(), size)
        self.group = ProcessGroupGloo(store, rank, size, timedelta(seconds=20))
        self.group.allreduce([torch.zeros(1)]).wait()

    @staticmethod
    def number() -> bytes:
        return mktemp().encode().ljust(128, b"\0")

    def broadcast(self, tensor: torch.Tensor) -> None:
        self.group.broadcast(tensor, 0).wait()


class FakeServer:
    """vLLM's paths, with the answers that vLLM gives.

    Attributes:
        keep: Say that weights were taken, and keep the old ones.
        die_after: Completions after which the connection is cut and nothing answered any more.
    """

    def __init__(self, model_dir: Path, **options: Any) -> None:
        self.vllm = FakeVLLM(model_dir, **options)
        self.keep = False
        self.down = False
        self.die_after: int | None = None
        self.key: str | None = None
        self.limit = 512
        self.completions: list[dict[str, Any]] = []
        self.paused = False
        self._lock = threading.Lock()  # adapters and models aren't swapped under a forward

    def __call__(self, asked: Asked) -> Answer:
        with self._lock:
            if self.down:
                return Answer(b"{}", cut=True)
            path = asked.path.partition("?")[0]
            if (
                self.key
                and path.startswith("/v1")
                and asked.headers.get("authorization") != f"Bearer {self.key}"
            ):
                return Answer({"error": "Unauthorized"}, 401)
            name = path.rpartition("/")[2]
            answer = getattr(self, _PATHS.get(name, name), None)
            if answer is None:
                return Answer({"detail": "Not Found"}, 404)
            return answer(asked.body)

    def models(self, _: Any) -> Answer:
        base = str(self.vllm.model_dir)
        adapters = [{"id": name, "parent": base} for name in self.vllm.loaded]
        return Answer(
            {
                "data": [
                    {"id": base, "root": base, "parent": None, "max_model_len": self.limit},
                    *adapters,
                ]
            }
        )

    def tokenize(self, body: Any) -> Answer:
        read = self.vllm.model.tokenizer(body["prompt"], add_special_tokens=False)
        return Answer({"tokens": read["input_ids"]})

    def load_lora_adapter(self, body: Any) -> Answer:
        version = Version(body["lora_name"], 0, Path(body["lora_path"]), True)
        if not version.path.is_dir():
            return Answer({"error": {"message": f"No adapter found for {version.path}"}}, 404)
        if self.keep and self.vllm.loaded:
            self.vllm.model.add_adapter(
                version.name, copy_from=self.vllm.loaded[-1], trainable=False
            )
            self.vllm.loaded.append(version.name)
        else:
            self.vllm.load_adapter(version)
        return Answer(b"Success: LoRA adapter added.")

    def unload_lora_adapter(self, body: Any) -> Answer:
        if body["lora_name"] not in self.vllm.loaded:
            return Answer({"error": {"message": "cannot be found"}}, 404)
        self.vllm.loaded.remove(body["lora_name"])
        return Answer(b"Success")

    def pause(self, _: Any) -> Answer:
        self.paused = True
        return Answer({"status": "paused"})

    def resume(self, _: Any) -> Answer:
        self.paused = False
        return Answer({"status": "resumed"})

    def collective_rpc(self, body: Any) -> Answer:
        assert self.paused, "weights replaced while it samples"
        path = Path(body["kwargs"]["weights_path"])
        if not path.is_dir():
            return Answer({"error": "no such directory"}, 500)
        if not self.keep:
            self.vllm.load_weights(Version(path.name, 0, path, False))
        return Answer({"results": [None]})

    def get_world_size(self, _: Any) -> Answer:
        return Answer({"world_size": 1})

    def init_weight_transfer_engine(self, body: Any) -> Answer:
        info = body["init_info"]
        number = b64decode(info["nccl_unique_id_b64"])
        assert len(number) == 128 and not info["packed"]
        self.group = GlooGroup(info["world_size"], number, info["rank_offset"])
        return Answer({"message": "Weight transfer initialized"})

    def start_weight_update(self, _: Any) -> Answer:
        assert self.paused, "weights replaced while it samples"
        return Answer({"message": "Weight update started"})

    def update_weights(self, body: Any) -> Answer:
        info = body["update_info"]
        self.received = {}
        for name, dtype, shape in zip(*(info[key] for key in _UPDATE), strict=True):
            self.received[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            self.group.broadcast(self.received[name])
        return Answer({"message": "Weights updated"})

    def finish_weight_update(self, body: Any) -> Answer:
        with TemporaryDirectory() as directory:
            path = Path(directory) / body["weight_version"]
            shutil.copytree(self.vllm.model_dir, path)
            save_file(self.received, path / "model.safetensors", {"format": "pt"})
            if not self.keep:
                self.vllm.load_weights(Version(path.name, 0, path, False))
        self.vllm.weights = body["weight_version"]
        return Answer({"message": "Weight update finished"})

    def reset_prefix_cache(self, _: Any) -> Answer:
        return Answer({"success": True})

    def update_weight_version(self, body: Any) -> Answer:
        self.vllm.weights = body["new_version"]
        return Answer({"success": True})

    def weight_info(self, _: Any) -> Answer:
        return Answer({"weight_version": self.vllm.weights})

    def complete(self, body: Any) -> Answer:
        if body["model"] not in (str(self.vllm.model_dir), *self.vllm.loaded):
            return Answer({"error": {"message": f"The model {body['model']} does not exist."}}, 404)
        if self.die_after is not None and len(self.completions) >= self.die_after:
            self.down = True
            return Answer(b"{}", cut=True)
        self.completions.append(body)
        role = body["model"] if body["model"] in self.vllm.loaded else "reference"
        tokens, logprobs, stopped = self.vllm.sample(
            Request(body["prompt"], body["seed"]), body, role
        )
        choice = {
            "token_ids": tokens,
            "logprobs": {"token_logprobs": logprobs},
            "finish_reason": "stop" if stopped else "length",
        }
        return Answer({"choices": [choice]})
