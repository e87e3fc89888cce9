"""A judge that runs here."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.masking import padded_rows
from lit_rlhf.judges.base import Answer, Assessment, Case, Conversation, Judge
from lit_rlhf.models import Backbone, ModelSpec, evaluating, gathered
from lit_rlhf.models.branched import pack
from lit_rlhf.models.fingerprint import weights_fingerprint
from lit_rlhf.options import check_option, is_whole
from lit_rlhf.rollout import NativeEngine, RolloutRequest, Sampling
from lit_rlhf.types import Prompts, asked

_Question: TypeAlias = tuple[list[int], list[list[int]]]
"""Tokens of the question, and of each word behind it."""


class LocalJudge(Judge):
    """A causal language model that weighs the words of the verdict, or writes an answer that ends in one.

    By log-probs each word is a branch behind the one question: its probability is that of all its tokens, less that of
    longer words that begin with it (10 and 1); it is exact, and nothing is sampled. As text the likeliest answer is
    written, for models that reason first; one without a word of the verdict is a failure, see `failures`.

    With a chat template the question is rendered by it; without, the word follows the question and a space.

    Args:
        backbone: The model. None: the policy that is trained with this judge in its reward (self-rewarding,
            arXiv:2401.10020), as it is at that moment; no cache then.
        role: Whose adapter is on: "policy", or "reference" for the policy as it was at the start.
        lead: Text that the answer is made to begin with, such as "The better answer is".
        batch_size: Questions at a time, at least 1.
        mode: "logprobs" or "text".
        max_new_tokens: Of the answer as text, at least 1.
        adapter: A judge's adapter on the base of the policy in training, which then takes no second model: directory of
            one that `lit-rlhf export` or peft wrote.
        **kwargs: As for `Judge`.

    Raises:
        ConfigurationError: An option is out of range, or a cache for a policy in training, or an
            adapter beside a model of its own.
    """

    def __init__(
        self,
        backbone: ModelSpec | None = None,
        role: str = "policy",
        lead: str = "",
        batch_size: int = 8,
        mode: Literal["logprobs", "text"] = "logprobs",
        max_new_tokens: int = 256,
        adapter: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_option(is_whole(batch_size, 1), self, "batch_size", batch_size, "1 or more")
        valid = is_whole(max_new_tokens, 1)
        check_option(valid, self, "max_new_tokens", max_new_tokens, "1 or more")
        self.check_mode(mode)
        if adapter is not None and (backbone is not None or role != "policy"):
            raise ConfigurationError(
                f"LocalJudge(adapter={adapter!r}) stands on the base of the policy: leave backbone and role out, or "
                "give the adapter of a model of its own as backbone.adapter."
            )
        if backbone is None and adapter is None and self.cache is not None:
            raise ConfigurationError(
                "LocalJudge(cache=...) needs a model of its own (backbone): what a policy in training says changes."
            )
        self.spec = backbone
        self.role = role
        self.lead = lead
        self.batch_size = batch_size
        self.mode, self.max_new_tokens = mode, max_new_tokens
        self.adapter = adapter
        self._backbone: Backbone | None = None
        self._weights = ""

    @classmethod
    def of(cls, backbone: Backbone, **kwargs: Any) -> "LocalJudge":
        """A judge of a model that is loaded already; see the class."""
        judge = cls(**kwargs)
        judge.attach(backbone)
        return judge

    def attach(self, backbone: Backbone) -> None:
        """Take the policy as the model, where there is no other."""
        if self.spec is not None or self._backbone is backbone:
            return
        self._backbone = backbone
        if self.adapter is not None:
            self.role = backbone.free_role("judge")
            backbone.add_adapter(self.role, path=self.adapter, trainable=False)

    def to(self, device: torch.device) -> None:
        """Move a model of its own."""
        if self.spec is not None:
            self.model.to(device)

    @property
    def model(self) -> Backbone:
        """The model, loaded when it is first needed.

        Raises:
            ConfigurationError: It can't be loaded; or the judge is to be the policy, and has met none.
        """
        if self._backbone is None:
            if self.spec is None:
                raise ConfigurationError(
                    "LocalJudge has no model: set backbone, or use it in the reward of a policy module."
                )
            self._backbone = Backbone.load(self.spec, trainable=False)
            if self.spec.adapter is not None:
                self._backbone.add_adapter("policy", trainable=False)
        return self._backbone

    def identity(self) -> dict[str, Any]:
        """The weights, the chat template, and how they are asked."""
        fixed = self.spec is not None or self.adapter is not None
        if fixed and not self._weights:
            self._weights = weights_fingerprint(self.model, self.role)
        template = self.model.tokenizer.chat_template
        found = {"weights": self._weights, "template": template, "lead": self.lead}
        if self.spec is not None:
            found |= {"dtype": self.spec.dtype, "quantization": self.spec.quantization}
        if self.mode == "text":
            found |= {"max_new_tokens": self.max_new_tokens, "pattern": self.verdict.pattern}
        return found

    def assess(self, cases: Sequence[Case]) -> list[Assessment | None]:
        """See `Judge.assess`; a policy that is sharded is whole meanwhile, for processes ask different questions."""
        with gathered(self.model):
            return super().assess(cases)

    @torch.no_grad()
    def ask(self, conversations: Mapping[str, Conversation]) -> dict[str, Answer | None]:
        """Weigh the words or write answers, questions of similar length together."""
        rows = {key: self._tokens(messages) for key, messages in conversations.items()}
        order = sorted(rows, key=lambda key: len(rows[key][0]))
        found: dict[str, Answer | None] = {}
        for start in range(0, len(order), self.batch_size):
            keys = order[start : start + self.batch_size]
            ask = self._write if self.mode == "text" else self._weigh
            answers = ask([rows[key] for key in keys])
            for key, (answer, said, written) in zip(keys, answers, strict=True):
                found[key] = self.keep(key, answer, said, len(rows[key][0]), written)
        return found

    def _write(self, rows: Sequence[_Question]) -> Iterator[tuple[Answer, str, int]]:
        """What the likeliest answer says, the answer, and how many tokens it has."""
        backbone = self.model
        prompts, mask = padded_rows([prompt for prompt, _ in rows], backbone.device)
        sampling = Sampling(self.max_new_tokens, temperature=0.0)
        seeds = torch.zeros(len(rows), dtype=torch.int64, device=backbone.device)
        request = RolloutRequest(Prompts(prompts, mask), sampling, seeds, role=self.role)
        written = NativeEngine().generate(backbone, request)
        ended = written.finished.tolist()
        for ids, own, whole in zip(written.tokens, written.mask, ended, strict=True):
            said = self.lead + str(backbone.tokenizer.decode(ids[own], skip_special_tokens=True))
            yield self.read(said, cut=not whole), said, int(own.sum())

    def _tokens(self, messages: Conversation) -> _Question:
        """Those of the question, and of each word behind it."""
        tokenizer = self.model.tokenizer
        if tokenizer.chat_template is not None:
            text = str(
                tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            )
            special, space = False, " " if self.lead else ""
        else:
            text = "\n\n".join(turn["content"] for turn in messages).rstrip()
            text, special, space = f"{text}\n" if self.lead else text, True, " "
        text += self.lead.rstrip()

        def encode(said: str, *, special: bool) -> list[int]:
            ids = [int(i) for i in tokenizer(said, add_special_tokens=special)["input_ids"]]
            # Some tokenizers put EOS behind every text; this one goes on.
            return ids[:-1] if special and ids and ids[-1] == tokenizer.eos_token_id else ids

        prompt, words = encode(text, special=special), []
        for word in self.verdict.words:
            joint = encode(text + space + word, special=special)
            goes_on = joint[: len(prompt)] == prompt
            words.append(joint[len(prompt) :] if goes_on else encode(space + word, special=False))
        context = self.model.context_length
        room = self.max_new_tokens if self.mode == "text" else max(map(len, words))
        if context is not None and len(prompt) + room > context:
            raise ConfigurationError(
                f"A question to the judge has {len(prompt)} tokens, its answer up to {room}; the model reads "
                f"{context}. Shorten the answers, or take a judge with a longer context."
            )
        return prompt, words

    def _weigh(self, rows: Sequence[_Question]) -> Iterator[tuple[Answer, str, int]]:
        """The probability of each word, the same as text, and how many tokens were weighed."""
        backbone, count = self.model, len(self.verdict.words)
        prompts, prompt_mask = padded_rows([prompt for prompt, _ in rows], backbone.device)
        every = [ids for _, words in rows for ids in words]
        words, mask = padded_rows(every, backbone.device)  # (N, T)
        batch = pack(prompts, prompt_mask, words, mask, backbone.pad_token_id)
        with evaluating(backbone):
            output = backbone(batch, num_branches=count, role=self.role, logprobs=True)
        logprobs = asked(output.logprobs).double().sum(-1).view(-1, count)
        for (_, tokens), of_words in zip(rows, logprobs.tolist(), strict=True):
            answer = self._answer(tokens, of_words)
            yield answer, str(answer), sum(map(len, tokens))

    def _answer(self, tokens: list[list[int]], logprobs: list[float]) -> Answer:
        """Probability of each word, the longer ones that begin with it left out."""
        held: dict[int, float] = {}
        for i in sorted(range(len(tokens)), key=lambda i: -len(tokens[i])):
            longer = sum(p for j, p in held.items() if tokens[j][: len(tokens[i])] == tokens[i])
            held[i] = max(math.exp(logprobs[i]) - longer, 0.0)
        return {word: held[i] for i, word in enumerate(self.verdict.words)}
