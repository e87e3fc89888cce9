"""What both ways to vLLM share: requests, weights that follow the policy, and the check that both hold the same."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, Self, TypeVar

import torch

from lit_rlhf.distributed import failing_together, from_first_rank
from lit_rlhf.errors import ConfigurationError, ServiceError
from lit_rlhf.models import Backbone, gathered
from lit_rlhf.rollout.base import RolloutEngine, RolloutRequest, end_tokens
from lit_rlhf.rollout.native import GeneratedRows
from lit_rlhf.rollout.vllm.probe import Probe
from lit_rlhf.rollout.vllm.sampler import Completed, Request, Sampler, Version, sampling_options
from lit_rlhf.rollout.vllm.weights import WeightSync
from lit_rlhf.types import Generation, change_tensors

_COOLEST = 0.01
"""vLLM raises lower temperatures to this."""
Held = TypeVar("Held")


class VLLMRollouts(RolloutEngine, Generic[Held]):
    """Base of the engines on vLLM.

    Of several training processes the first brings the weights, and each asks for the completions of its own prompts.

    Args:
        sync: How weights come to vLLM.
    """

    own_arithmetic = False
    wait: float = 0.0
    """Seconds that `bring` waits for a vLLM that was lost."""

    def __init__(self, sync: WeightSync) -> None:
        self.sync = sync
        self.probe = Probe()
        self._checked: set[tuple[int, int]] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: Lightning copies a module's arguments, and what is at the other end can't be copied."""
        return self

    # -- what the two ways differ in ----------------------------------------------------------------------------------

    @abstractmethod
    def bring(self, backbone: Backbone, role: str, prompt: list[int], longest: int) -> Held:
        """Have vLLM hold a role's weights as they are now; called by the first process, its result given to each.

        Args:
            backbone: With whole parameters.
            role: Whose weights.
            prompt: To check with that vLLM holds them.
            longest: Most tokens that a prompt of this process has with its completion.
        """

    @abstractmethod
    def complete(
        self, prompts: Sequence[Sequence[Request]], options: dict[str, Any], held: Held
    ) -> list[Completed]:
        """Sample the completions of each prompt, in the order of the requests, from what `bring` returned."""

    def check_base(
        self, sampler: Sampler, backbone: Backbone, prompt: list[int], version: Version | None
    ) -> None:
        """See, once, that a vLLM holds the policy's base, where it isn't to be replaced anyway."""
        key = (id(sampler), id(backbone))
        if key not in self._checked and (version is None or version.is_adapter):
            self.probe.check_base(sampler, backbone, prompt)
            self._checked.add(key)

    def forget(self, sampler: Sampler) -> None:
        """Check a vLLM's base again, as it was started anew."""
        self._checked = {key for key in self._checked if key[0] != id(sampler)}
        self.sync.forget(sampler)

    # -- the engine ---------------------------------------------------------------------------------------------------

    def sample(self, backbone: Backbone, request: RolloutRequest) -> Generation:
        """See `RolloutEngine.sample`.

        Raises:
            ConfigurationError: The role's weights can't be brought to vLLM, vLLM holds another base, doesn't answer, or
                samples otherwise than asked.
        """
        sample = self.begin(backbone, request)
        try:
            with failing_together():
                return sample()
        except ServiceError:
            if self.wait == 0:
                raise
        sample = self.begin(backbone, request)  # no server was left, and it waits for one
        with failing_together():
            return sample()

    @torch.no_grad()
    def begin(self, backbone: Backbone, request: RolloutRequest) -> Callable[[], Generation]:
        """See `RolloutEngine.begin`: the weights are with vLLM when it returns."""
        request.check_fits(backbone)
        sampling, seeds, role = request.sampling, request.seeds, request.role
        if 0 < sampling.temperature < _COOLEST:
            raise ConfigurationError(
                f"Sampling.temperature={sampling.temperature}: vLLM raises temperatures below {_COOLEST} to that in "
                f"silence. Use {_COOLEST} or more, or 0 (greedy)."
            )
        self.sync.refuse(backbone, role, type(self).__name__)
        ends = end_tokens(backbone, sampling, torch.device("cpu")).tolist()
        padded = zip(request.prompts.ids, request.prompts.mask, strict=True)
        prompts = [ids[mask].tolist() for ids, mask in padded]
        longest = max(map(len, prompts)) + sampling.max_new_tokens
        with gathered(backbone):  # by all processes; the first alone computes with them
            held = from_first_rank(lambda: self.bring(backbone, role, prompts[0], longest))
        per_prompt = zip(prompts, seeds.view(len(prompts), -1).tolist(), strict=True)
        requests = [[Request(prompt, seed) for seed in own] for prompt, own in per_prompt]
        pad, cpu = backbone.pad_token_id, torch.device("cpu")

        def sample() -> Generation:
            rows = GeneratedRows(len(seeds), sampling.max_new_tokens, pad, cpu)
            found = self.complete(requests, sampling_options(sampling, ends), held)
            for row, completed in enumerate(found):
                _store(rows, row, completed, ends)
            generation: Generation = change_tensors(lambda x: x.to(seeds.device), rows.generation())
            return generation

        return sample


def _store(rows: GeneratedRows, row: int, completed: Completed, ends: list[int]) -> None:
    length = len(completed.tokens)
    finished = length > 0 and completed.tokens[-1] in ends
    if completed.stopped != finished or length == 0:
        last = completed.tokens[-1] if length else None
        raise ConfigurationError(
            f"vLLM ended completion {row} of the batch by a stop token of its own, after token {last}; those asked "
            f"for are {ends}. Start the server with --generation-config vllm, so that the model's "
            "generation_config.json adds none."
        )
    rows.tokens[row, :length] = torch.tensor(completed.tokens)
    rows.logprobs[row, :length] = torch.tensor(completed.logprobs)
    rows.lengths[row] = length
    rows.finished[row] = finished
