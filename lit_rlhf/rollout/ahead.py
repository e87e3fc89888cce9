"""One step off: the next batch is sampled elsewhere while the policy updates on this one."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from lit_rlhf.distributed import failing_together, gather_objects, rank
from lit_rlhf.errors import ConfigurationError, LitRLHFError, ServiceError
from lit_rlhf.models import Backbone
from lit_rlhf.options import check_option
from lit_rlhf.rollout.base import RolloutEngine, RolloutRequest
from lit_rlhf.rollout.threads import in_a_thread
from lit_rlhf.types import Generation, change_tensors

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Drawn:
    """A request, and its completions once they are there."""

    request: dict[str, Any]
    version: int
    completions: Future[Generation]

    def answers(self, request: dict[str, Any]) -> bool:
        return self.request.keys() == request.keys() and all(
            torch.equal(mine, request[name]) if isinstance(mine, Tensor) else mine == request[name]
            for name, mine in self.request.items()
        )


class Ahead(RolloutEngine):
    """Samples the next batch of prompts while the policy updates on this one, with an engine that samples elsewhere.

    At the start of an iteration its completions are there, drawn by the weights of the iteration before; those of the
    next are begun with the weights as they are now, and rewards, reference and updates go on meanwhile. An iteration
    then takes about as long as the longer of the two, not as their sum. The first batch of an epoch is sampled when it
    is asked for, and so are validation and whatever else a module asks for, once nothing is under way.

    Tokens drawn by other weights than those that learn from them need a correction: policies ask for
    `recompute_logprobs` and `importance_correction`. `Generation.versions` holds the iteration whose weights drew each
    token; `train/rollout/staleness` logs by how many iterations they are behind, on average.

    Checkpoints hold what was sampled ahead, waiting for it: a resumed run trains on the same completions.

    Args:
        engine: `VLLMServerEngine`; engines on the policy's own device are refused, for they would take turns.
        staleness: Iterations that a rollout may be behind: 1, or 0, which samples when asked, to compare with.

    Raises:
        ConfigurationError: The engine samples on the policy's device, or the staleness is another number.
    """

    own_arithmetic = False
    samples_elsewhere = True

    def __init__(self, engine: RolloutEngine, staleness: int = 1) -> None:
        check_option(staleness in (0, 1), self, "staleness", staleness, "0 or 1 iterations")
        if not engine.samples_elsewhere:
            raise ConfigurationError(
                f"Ahead samples while the policy updates, and {type(engine).__name__} samples on the policy's device: "
                "they would take turns, with older samples for nothing. Use VLLMServerEngine with a server on other "
                "devices, or leave Ahead out."
            )
        self.engine = engine
        self.staleness = staleness
        self._drawn: _Drawn | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself, as the engines that it samples with."""
        return self

    def check(self, backbone: Backbone, role: str = "policy", longest: int = 0) -> None:
        """The engine's."""
        self.engine.check(backbone, role, longest)

    def sample(self, backbone: Backbone, request: RolloutRequest) -> Generation:
        """What was sampled ahead, where that is what is asked for; else the engine's, once nothing is under way."""
        drawn = self._drawn
        if drawn is not None and drawn.answers(_plain(request)):
            self._drawn = None
            try:
                with failing_together():
                    generation = drawn.completions.result()
            except ServiceError as error:
                said = "What was to be sampled ahead is sampled now, by these weights. %s"
                _log.warning(said, error)
            else:
                device = request.prompts.ids.device
                moved: Generation = change_tensors(lambda x: x.to(device), generation)
                return self.stamp(moved, drawn.version)
        elif drawn is not None:  # weights must not change under it
            drawn.completions.exception()
        return self.engine.sample(backbone, request)

    def look_ahead(self, backbone: Backbone, request: RolloutRequest, version: int) -> None:
        """Begin on what `generate` will be asked for next, with the weights as they are; all processes must.

        Args:
            backbone: The model.
            request: What will be asked for. Its values are left out: by then they would be an older critic's.
            version: Iteration whose weights these are.
        """
        if self.staleness == 1:
            # Threads begin with gradients; an engine that computes would keep the graph of all its steps.
            request = replace(request, values=None)
            sample = torch.no_grad()(self.engine.begin(backbone, request))
            self._drawn = _Drawn(_plain(request), version, in_a_thread(sample, "ahead"))

    def stamp(self, generation: Generation, version: int) -> Generation:
        """Completions with the version that drew them, which those that were sampled ahead have already."""
        if generation.versions is not None:
            return generation
        return replace(generation, versions=torch.full_like(generation.tokens, version))

    def state_dict(self) -> dict[str, Any]:
        """What each process has sampled ahead, waited for; all must ask. Empty where none has."""
        drawn, part = self._drawn, None
        # What failed is said at the next iteration, and sampled anew by a run that is resumed.
        if drawn is not None and not isinstance(drawn.completions.exception(), LitRLHFError):
            fields = vars(drawn.completions.result())
            known = {name: value.cpu() for name, value in fields.items() if value is not None}
            part = {"request": drawn.request, "version": drawn.version, "generation": known}
        parts = gather_objects(part)
        return {"ahead": parts} if all(part is not None for part in parts) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore this process's part."""
        self._drawn = None
        if "ahead" in state:
            part = state["ahead"][rank()]
            found: Future[Generation] = Future()
            found.set_result(Generation(**part["generation"]))
            self._drawn = _Drawn(part["request"], part["version"], found)


def _plain(request: RolloutRequest) -> dict[str, Any]:
    """A request as checkpoints can hold it and others be compared with it; without values, which are had here alone."""
    plain = {name: x for name, x in vars(request).items() if name not in ("prompts", "values")}
    plain |= {f"prompt_{name}": tensor for name, tensor in vars(request.prompts).items()}
    plain["sampling"] = asdict(request.sampling)
    return {name: x.cpu() if isinstance(x, Tensor) else x for name, x in plain.items()}
