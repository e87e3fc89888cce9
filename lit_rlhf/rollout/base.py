"""What a rollout engine is given and what it must give back; a decode by the policy's own layers is proved once."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError, DataError, LitRLHFError, is_out_of_memory
from lit_rlhf.models import Backbone, evaluating
from lit_rlhf.models.branched import length_limit, pack
from lit_rlhf.models.checks import product_dtype
from lit_rlhf.models.loading import embeddings
from lit_rlhf.models.sharding import agreed
from lit_rlhf.options import check_fields, check_option
from lit_rlhf.types import Generation, Prompts, asked

_PROMPTS, _STEPS, _SAMPLES = (13, 5), 8, 2
_TOLERANCE, _ROUNDED = 1e-3, 0.1
"""Nats: the largest in float32, the mean where anything is computed in fewer bits."""


@dataclass
class Sampling:
    r"""How tokens are drawn: from $\mathrm{softmax}(z / \tau)$ over the vocabulary, truncated where asked for.

    Attributes:
        max_new_tokens: Most tokens that a completion may have, EOS included; at least 1.
        temperature: $\tau \ge 0$: 1 is the model itself, lower is more alike, 0 takes the likeliest token (greedy).
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the fewest likeliest tokens whose probabilities sum to at least p, in (0, 1] (arXiv:1904.09751).
        min_new_tokens: EOS and stop tokens can't be drawn before this many tokens.
        stop_token_ids: Tokens that end a completion besides EOS.

    Raises:
        ConfigurationError: A value out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0
    stop_token_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fields(self)
        most = self.max_new_tokens
        for valid, name, allowed in (
            (most >= 1, "max_new_tokens", "at least 1"),
            (self.temperature >= 0, "temperature", "0 (greedy) or larger"),
            (self.top_k >= 0, "top_k", "0 (all tokens) or larger"),
            (0 < self.top_p <= 1, "top_p", "in (0, 1]"),
            (
                0 <= self.min_new_tokens <= most,
                "min_new_tokens",
                f"from 0 to max_new_tokens={most}",
            ),
            (all(token >= 0 for token in self.stop_token_ids), "stop_token_ids", "token ids"),
        ):
            check_option(valid, self, name, getattr(self, name), allowed)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken and nothing is drawn."""
        return self.temperature == 0

    @property
    def truncated(self) -> bool:
        r"""Whether tokens come from another distribution than $\mathrm{softmax}(z / \tau)$ over the whole vocabulary.

        Losses that compare log-probs with those of a training forward must refuse such rollouts.
        """
        return self.greedy or self.top_k > 0 or self.top_p < 1 or self.min_new_tokens > 0


@dataclass(frozen=True)
class RolloutRequest:
    """What a rollout engine is asked for: completions of prompts, drawn in a certain way.

    Attributes:
        prompts: (B, P), right-padded.
        sampling: How tokens are drawn.
        seeds: (N,) int64, N = B * num_samples: one seed per completion, on which alone its randomness depends.
        num_samples: Completions of each prompt, which become neighbours in the result.
        role: Whose distribution of the backbone is sampled.
        values: A scalar head of the backbone whose values at the state before each token are wanted. An engine that
            doesn't see hidden states leaves `Generation.values` out, and another pass computes them.

    Raises:
        ConfigurationError: Prompts that aren't right-padded; another number of seeds than completions.
        DataError: A prompt without tokens.
    """

    prompts: Prompts
    sampling: Sampling
    seeds: Tensor
    num_samples: int = 1
    role: str = "policy"
    values: str | None = None

    def __post_init__(self) -> None:
        ids, mask = self.prompts.ids, self.prompts.mask
        wanted = len(ids) * self.num_samples
        if wanted < 1 or self.seeds.shape != (wanted,):
            raise ConfigurationError(
                f"{len(ids)} prompts with num_samples={self.num_samples} need {wanted} seeds, one per completion; got "
                f"a tensor of shape {tuple(self.seeds.shape)}."
            )
        fits = mask.dtype == torch.bool and mask.shape == ids.shape
        if not fits or bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise ConfigurationError(
                f"Rollouts take right-padded prompts: ids of shape {tuple(ids.shape)} came with a mask of shape "
                f"{tuple(mask.shape)} and {mask.dtype} that is not a run of True followed by False in each row. Load "
                "the tokenizer with padding_side='right'."
            )
        if bool((empty := ~mask.any(-1)).any()):
            raise DataError(
                f"Prompt {int(empty.long().argmax())} of the batch has no tokens, so nothing can be predicted from it. "
                "Give every prompt at least a BOS token, or drop empty prompts from the data."
            )

    @property
    def longest(self) -> int:
        """Positions that the longest prompt and its completion may take."""
        return int(self.prompts.mask.sum(-1).max()) + self.sampling.max_new_tokens

    def check_fits(self, backbone: Backbone) -> None:
        """Refuse what exceeds a model's context or vocabulary.

        Raises:
            ConfigurationError: A prompt and its completion have more positions than the model, or a stop token is none
                of its tokens.
        """
        if self.sampling.stop_token_ids:
            last, size = max(self.sampling.stop_token_ids), backbone.vocabulary_size
            allowed = f"ids of the model's {size} tokens"
            check_option(last < size, self.sampling, "stop_token_ids", last, allowed)
        context, most = context_length(backbone), self.sampling.max_new_tokens
        lengths = self.prompts.mask.sum(-1)
        longest = int(lengths.max())
        if context is not None and longest + most > context:
            raise ConfigurationError(
                f"A prompt of {longest} tokens (number {int(lengths.argmax())} of the batch) and "
                f"max_new_tokens={most} need {longest + most} positions; the model has {context}. Shorten prompts "
                "(max_prompt_length of the data) or lower max_new_tokens."
            )


class RolloutEngine(ABC):
    """Samples completions of prompts from a role of a backbone."""

    own_arithmetic: ClassVar[bool] = True
    """Whether log-probs come from the policy's own layers. Those of other kernels differ by more than rounding and
    can't stand in for a training forward's: policies then need `recompute_logprobs`."""
    samples_elsewhere: ClassVar[bool] = False
    """Whether it samples on other devices than the policy's, and has `begin`."""
    staleness: int = 0
    """By how many iterations the weights that draw may be behind: above 0 policies need `importance_correction`."""

    @torch.no_grad()
    def generate(self, backbone: Backbone, request: RolloutRequest) -> Generation:
        """Sample completions; nothing of the backbone is changed and no gradient is recorded.

        Args:
            backbone: The model.
            request: What is to be sampled.

        Returns:
            N completions in the order of the prompts.

        Raises:
            ConfigurationError: The engine can't serve the backbone, a prompt and its completion exceed its context, or
                what it gives are no completions.
            FloatingPointError: The model gave log-probs that are not finite.
        """
        request.check_fits(backbone)
        self.check(backbone, request.role, request.longest)
        return checked(self.sample(backbone, request), request, self)

    @abstractmethod
    def sample(self, backbone: Backbone, request: RolloutRequest) -> Generation:
        """`generate`, of a request that the backbone can serve: the one method that an engine must have."""

    def begin(self, backbone: Backbone, request: RolloutRequest) -> Callable[[], Generation]:
        """Do of `generate` what needs the policy, and return the rest of it: for engines that sample elsewhere.

        What is returned samples from the weights as they are now. It is called once, by any thread, and uses neither
        the backbone nor other processes; all processes must call `begin`.

        Raises:
            ConfigurationError: The engine samples on the policy's device.
        """
        raise ConfigurationError(
            f"{type(self).__name__} samples on the policy's device: it has no begin, and samples_elsewhere is False."
        )

    def stamp(self, generation: Generation, version: int) -> Generation:
        """Completions of the weights of an iteration; engines that may be behind write down which."""
        return generation

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold of it; all processes ask. Engines without state have none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""

    def check(self, backbone: Backbone, role: str = "policy", longest: int = 0) -> None:
        """Refuse a backbone that would be sampled from wrongly; work of its own, which is no part of a rollout.

        `generate` does it too, the first time; policies call it before a rollout is timed.

        Args:
            backbone: The model.
            role: Whose distribution will be sampled.
            longest: Positions of the longest row that will be asked for, where that is known.
        """


class LocalEngine(RolloutEngine):
    """Base of the engines that run the policy's own layers; `sample` says how."""

    way_out = "Rollouts of this model can't be had."
    """What remains to be done about a model that is decoded wrongly."""

    def longest(self, backbone: Backbone) -> int | None:
        """Most tokens of a row that the engine decodes, where there is a limit besides the model's context."""
        return None

    def window(self, backbone: Backbone) -> int | None:
        """The smallest window of the model's layers, where it is the engine that applies them."""
        return None

    def check(self, backbone: Backbone, role: str = "policy", longest: int = 0) -> None:
        """Sample a few tokens of two prompts and compare their log-probs with those of one plain row at a time.

        Done once for a backbone and kind of engine, and once more before the first row that a window cuts. Catches
        attention that a decode doesn't apply, whatever its name.

        Raises:
            ConfigurationError: They differ, or the decode fails.
        """
        kind, window = type(self).__name__, self.window(backbone)
        if kind not in backbone.decoded_by:
            self._compare(backbone, role, _PROMPTS)
            backbone.decoded_by.add(kind)
        beyond = f"{kind}, beyond windows"
        if window is None or beyond in backbone.decoded_by:
            return
        # Processes that wait for one another compare together.
        if agreed(backbone, longest > window):
            self._compare(backbone, role, (window + _PROMPTS[1], *_PROMPTS[1:]))
            backbone.decoded_by.add(beyond)

    @torch.no_grad()
    def _compare(self, backbone: Backbone, role: str, prompts: Sequence[int]) -> None:
        kind, device = type(self).__name__, backbone.device
        limits = (self.longest(backbone), context_length(backbone))
        room = min((limit for limit in limits if limit), default=max(prompts) + _STEPS) - _STEPS
        if room < 1 or device.type == "meta":
            return
        lengths = torch.tensor([min(length, room) for length in prompts], device=device)
        width = int(lengths.max())
        mask = torch.arange(width, device=device) < lengths[:, None]
        vocabulary = embeddings(backbone.model).shape[0]
        ids = (torch.arange(2 * width, device=device).view(2, -1) * 5 + 1) % vocabulary
        seeds = torch.arange(2 * _SAMPLES, device=device)
        name, sampling = type(backbone.decoder).__name__, Sampling(max_new_tokens=_STEPS)
        try:
            request = RolloutRequest(Prompts(ids, mask), sampling, seeds, _SAMPLES, role)
            out = self.sample(backbone, request)
        except (LitRLHFError, FloatingPointError):
            raise
        except Exception as error:  # of a decoder that can't take the cache or the mask
            if is_out_of_memory(error):
                raise
            said = " ".join(str(error).split())[:300]
            raise ConfigurationError(
                f"{kind} can't decode {name} ({type(error).__name__}: {said}). {self.way_out}"
            ) from error
        gaps = []
        for row in range(len(seeds)):
            prompt, taken = row // _SAMPLES, out.mask[row]
            tokens = out.tokens[row][taken]
            found = completion_logprobs(backbone, ids[prompt][mask[prompt]], tokens, role)
            gaps.append((found - asked(out.logprobs)[row][taken]).abs())
        dtypes = {product_dtype(p.dtype) for p in backbone.model.parameters()}
        exact = backbone.spec.quantization == "none" and dtypes <= {torch.float32}
        exact = exact and not torch.is_autocast_enabled(device.type)
        gap = float(torch.cat(gaps).max() if exact else torch.cat(gaps).mean())
        if gap > (_TOLERANCE if exact else _ROUNDED):
            raise ConfigurationError(
                f"{kind} decodes {name} otherwise than its forward pass computes it: log-probs of the same tokens "
                f"differ by {gap:.2g} nats. {self.way_out}"
            )


def checked(given: object, request: RolloutRequest, engine: RolloutEngine) -> Generation:
    """What an engine, which may be one's own, has sampled.

    Raises:
        ConfigurationError: It is no `Generation`, or a field of it has another shape or kind.
    """
    name, rows = type(engine).__name__, len(request.seeds)
    if not isinstance(given, Generation):
        raise ConfigurationError(
            f"{name}.sample gave a {type(given).__name__}: give a Generation of lit_rlhf.types."
        )
    shape: Sequence[int] = getattr(given.tokens, "shape", ())
    axes = (rows, shape[1] if len(shape) == 2 else 0)
    for each in ("tokens", "mask", "finished", "logprobs", "values"):
        value: object = getattr(given, each)
        if value is None and each in ("logprobs", "values"):
            continue
        wanted, boolean = axes[:1] if each == "finished" else axes, each in ("mask", "finished")
        fits = isinstance(value, Tensor) and value.shape == wanted and 0 not in wanted
        if not fits or (getattr(value, "dtype", None) == torch.bool) != boolean:
            told = f"{getattr(value, 'dtype', '')} {tuple(getattr(value, 'shape', ()))}"
            raise ConfigurationError(
                f"{name}.sample gave {each} as a {type(value).__name__} {told} for {rows} completions (prompts times "
                f"num_samples). It must be a {'boolean ' if boolean else ''}tensor {wanted}: completions without their "
                "prompts, a row for each, padded on the right to one width of 1 or more."
            )
    return given


def context_length(backbone: Backbone) -> int | None:
    """Most positions that the model has, or has before it turns all of them otherwise, where its config tells."""
    limits = (backbone.context_length, length_limit(backbone.model.config.get_text_config()))
    return min((int(limit) for limit in limits if limit), default=None)


def end_tokens(backbone: Backbone, sampling: Sampling, device: torch.device) -> Tensor:
    """The ids that end a completion: EOS and the stop tokens, sorted, each once."""
    ids = sorted({*backbone.eos_token_ids, *sampling.stop_token_ids})
    return torch.tensor(ids, dtype=torch.int64, device=device)


def completion_logprobs(
    backbone: Backbone, prompt: Tensor, tokens: Tensor, role: str | None, temperature: float = 1.0
) -> Tensor:
    """(T,) log-probs of one completion (T,) of one prompt (P,), by a training forward of that row alone."""
    ids, answer = prompt[None], tokens[None]
    batch = pack(ids, torch.ones_like(ids).bool(), answer, torch.ones_like(answer).bool())
    with evaluating(backbone):
        out = backbone(batch, num_branches=1, role=role, logprobs=True, temperature=temperature)
    return asked(out.logprobs)[0]
