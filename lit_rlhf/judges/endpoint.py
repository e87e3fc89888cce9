"""A judge behind an OpenAI-compatible server."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from lit_rlhf.errors import ServiceError
from lit_rlhf.http import Endpoint, HTTPClient
from lit_rlhf.judges.base import Answer, Conversation, Judge
from lit_rlhf.options import check_option, is_number, is_text, is_whole


class EndpointJudge(Judge):
    """A model that a server runs: vLLM, llama.cpp, or a provider with `POST /chat/completions`.

    By log-probs, a token of the answer's first place counts for the verdict's word that it is, or that it alone begins;
    of the probabilities there the server tells the highest `top_logprobs`, and words beyond them count as 0.

    Args:
        endpoint: The server, with `/v1` where it has that: how many requests at a time, time limits, retries, the key.
        model: Its name there.
        mode: "logprobs": the probabilities of the verdict's words at the first token. "text": the one word of the
            verdict that stands in the answer's last line, for models that reason first or servers without log-probs.
        max_tokens: Of the answer; default: 1 by log-probs, 512 as text.
        top_logprobs: How many tokens the server tells of, 1 to 20 at most servers.
        temperature: Of the answer as text.
        options: Further fields of each request, such as `{"seed": 0}`.
        **kwargs: As for `Judge`.

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        mode: Literal["logprobs", "text"] = "logprobs",
        max_tokens: int | None = None,
        top_logprobs: int = 20,
        temperature: float = 0.0,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_option(is_text(model), self, "model", model, "a name that the server knows")
        self.check_mode(mode)
        check_option(is_whole(top_logprobs, 1), self, "top_logprobs", top_logprobs, "1 or more")
        valid = max_tokens is None or is_whole(max_tokens, 1)
        check_option(valid, self, "max_tokens", max_tokens, "1 or more")
        check_option(temperature >= 0, self, "temperature", temperature, "0 or more")
        self.client = HTTPClient(endpoint)
        self.mode = mode
        self.request: dict[str, Any] = {"model": model, "temperature": temperature}
        self.request["max_tokens"] = max_tokens or (1 if mode == "logprobs" else 512)
        if mode == "logprobs":
            self.request |= {"logprobs": True, "top_logprobs": top_logprobs}
        self.request |= options or {}

    def identity(self) -> dict[str, Any]:
        """The address and the request."""
        pattern = {} if self.verdict.pattern is None else {"pattern": self.verdict.pattern}
        return {"url": self.client.endpoint.url, "mode": self.mode, **pattern, **self.request}

    def ask(self, conversations: Mapping[str, Conversation]) -> dict[str, Answer | None]:
        """Ask the server, several at a time."""
        answers = self.client.map(self._one, conversations.items())
        return dict(zip(conversations, answers, strict=True))

    def _one(self, item: tuple[str, Conversation]) -> Answer | None:
        key, messages = item
        try:
            reply = self.client.post("chat/completions", {**self.request, "messages": messages})
            answer, said = self._read(reply)
            read, written = self._tokens(reply)
        except ServiceError as error:
            self.fail(error)
            return None
        return self.keep(key, answer, said, read, written)

    def _tokens(self, reply: Any) -> tuple[int, ...]:
        usage = reply.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        counts: list[Any] = [usage.get(f"{name}_tokens") for name in ("prompt", "completion")]
        return tuple(int(n) if is_number(n) and 0 <= n < math.inf else 0 for n in counts)

    def _read(self, reply: Any) -> tuple[Answer, str]:
        try:
            choice = reply["choices"][0]
            if self.mode == "text":
                said = str(choice["message"]["content"] or "")
                return self.read(said, cut=choice.get("finish_reason") == "length"), said
            tops = choice["logprobs"]["content"][0]["top_logprobs"]
            answer: Answer = {}
            for top in tops:
                if (word := self.verdict.match(top["token"])) is not None:
                    answer[word] = answer.get(word, 0.0) + math.exp(min(top["logprob"], 0.0))
            return answer, str([top["token"] for top in tops])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ServiceError(
                f"{self} answered with something else than a chat completion"
                f"{' with log-probs (else set mode: text)' if self.mode == 'logprobs' else ''}: {str(reply)[:300]}."
            ) from error

    def __str__(self) -> str:
        """Its address."""
        return f"The judge at {self.client.endpoint.url}"
