"""A teacher that a server runs: what it tells, and what it can't."""

from math import isfinite
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.distributed import failing_together
from lit_rlhf.errors import ConfigurationError, ServiceError
from lit_rlhf.http import Endpoint, HTTPClient
from lit_rlhf.models import Backbone
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.modules.reference import Teacher
from lit_rlhf.options import is_number
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import Rollout

_TEXT = "Which words do these tokens stand for? 42!"
"""Read with both tokenizers at the start."""


class TeacherServer(Teacher):
    """A model behind an OpenAI-compatible server that tells the log-probs of a prompt's tokens, as vLLM does.

    The tokens that the student has sampled are sent, and their log-probs come back: the `reference` of any policy that
    asks no more of it. `REINFORCEPolicyModule` with `NoReward` and `FixedKL(1)` has the reverse KL of each token as its
    reward (MiniLLM, arXiv:2306.08543). Whole distributions a server doesn't tell, nor does it lend its weights, so
    `DistillationPolicyModule`, Nash-MD and what samples from the reference take `TeacherModel`. Log-probs are those of
    temperature 1, at which the student must be sampled.

    Args:
        endpoint: The server, its address without `/v1`; a request is a prompt with one completion.
        model: Its name there; default: the first that it serves.

    Raises:
        ConfigurationError: An option of the endpoint is out of range.
    """

    def __init__(self, endpoint: Endpoint, model: str | None = None) -> None:
        super().__init__()
        self.endpoint, self.model_name = endpoint, model
        self.client = HTTPClient(endpoint)

    def __str__(self) -> str:
        """Its address."""
        return f"The teacher at {self.endpoint.url}"

    def attach(self, policy: Backbone, dtype: DTypeName | None = None) -> None:
        """Ask for its name, and compare the tokens of a text.

        Raises:
            ConfigurationError: It doesn't answer, tells no log-probs of prompts, or its tokens are other words.
        """
        try:
            if self.model_name is None:
                self.model_name = str(self.client.get("/v1/models", retries=0)["data"][0]["id"])
            ids = list(policy.tokenizer(_TEXT, add_special_tokens=False)["input_ids"])
            told = self._ask(ids, retries=0)
        except (ServiceError, KeyError, IndexError, TypeError) as error:
            raise ConfigurationError(
                f"{self} can't be asked: {error} Start one that serves POST /v1/completions with prompt_logprobs, "
                "as in `vllm serve MODEL`, and give its address without /v1."
            ) from error
        for token, place in zip(ids[1:], told[1:], strict=True):
            ours, theirs = str(policy.tokenizer.decode([token])), place.get("decoded_token")
            if theirs is not None and theirs.strip() != ours.strip():
                raise ConfigurationError(
                    f"{self} has another vocabulary than the student: token {token} is {ours!r} to the student and "
                    f"{theirs!r} to it. Choose a teacher of the student's family, or learn from its texts by SFT."
                )

    def logprobs(
        self, policy: Backbone, rollout: Rollout, temperature: float, budget: int
    ) -> Tensor:
        """(N, T), asked for one completion at a time, several at once; all processes must ask.

        Raises:
            ServiceError: A request failed for good.
        """
        prompts, samples = rollout.prompts, rollout.num_samples
        starts = [ids[own].tolist() for ids, own in zip(prompts.ids, prompts.mask, strict=True)]
        tails = [
            ids[own].tolist()
            for ids, own in zip(rollout.completions.tokens, rollout.response_mask, strict=True)
        ]

        def ask(number: int) -> list[float]:
            start, tail = starts[number // samples], tails[number]
            return [each["logprob"] for each in self._ask([*start, *tail])[len(start) :]]

        with failing_together():
            found = list(self.client.map(ask, range(len(tails))))
        mask = rollout.response_mask
        result = torch.zeros(mask.shape, device=mask.device)
        result[mask] = torch.tensor([value for row in found for value in row], device=mask.device)
        return result

    def beside(self, policy: Backbone) -> tuple[Backbone, str | None]:
        """Refuse to be a model here.

        Raises:
            ConfigurationError: Always.
        """
        raise _no_model("This method")

    def require_model(self, user: object) -> None:
        """Refuse.

        Raises:
            ConfigurationError: Always.
        """
        raise _no_model(type(user).__name__)

    def require_sampling(self, sampling: Sampling) -> None:
        """Refuse another temperature than 1.

        Raises:
            ConfigurationError: Names it.
        """
        if sampling.temperature != 1.0:
            raise ConfigurationError(
                f"sampling.temperature={sampling.temperature}: a TeacherServer tells log-probs at temperature 1, and "
                "the student is compared at the temperature of sampling. Set it to 1.0, or load the teacher here "
                "(TeacherModel)."
            )

    def _ask(self, ids: list[int], retries: int | None = None) -> list[dict[str, Any]]:
        """What it tells of each token of a text; of the first, which nothing precedes, nothing."""
        body = {
            "model": self.model_name,
            "prompt": ids,
            "prompt_logprobs": 0,
            "max_tokens": 1,
            "temperature": 0.0,
        }
        found = self.client.post("/v1/completions", body, retries)
        try:
            told = found["choices"][0]["prompt_logprobs"]
            places = [place[str(token)] for token, place in zip(ids[1:], told[1:], strict=True)]
            known = all(is_number(each["logprob"]) and isfinite(each["logprob"]) for each in places)
        except (KeyError, IndexError, TypeError, ValueError):
            known = False
        if not known:
            raise ServiceError(
                f"{self} was asked for the log-probs of {len(ids)} tokens (prompt_logprobs) and answered "
                f"{str(found)[:200]!r}."
            )
        return [{}, *places]


def _no_model(user: str) -> ConfigurationError:
    return ConfigurationError(
        f"{user} needs the teacher's whole distributions, or samples from it, and a TeacherServer tells the log-probs "
        "of the student's own tokens alone. Load the teacher here (TeacherModel), or learn by the policy gradient: "
        "REINFORCEPolicyModule with reference: TeacherServer, reward: NoReward and kl: FixedKL(1)."
    )
