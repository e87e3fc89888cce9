"""A conversation with a policy: its turns as the prompt that the policy has learned to answer, and its answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.data.encoding import Encoder
from lit_rlhf.data.records import Record
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone
from lit_rlhf.modules.collect import read_completions, score_completions
from lit_rlhf.prompt_form import PromptForm, warn_of_prompts
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import NativeEngine, RolloutEngine, RolloutRequest, Sampling
from lit_rlhf.rollout.base import LocalEngine, context_length
from lit_rlhf.seeding import sample_seeds
from lit_rlhf.types import Prompts, Scores, Text

Turn = dict[str, str]
Show = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """What a policy said.

    Attributes:
        text: Without special tokens.
        finished: Ended by itself, not at the length limit and not by Ctrl-C.
        scores: The reward's, where there is one and the answer wasn't broken off.
        forgotten: Exchanges that no longer fitted the model's context, and were left out.
    """

    text: str
    finished: bool
    scores: Scores | None = None
    forgotten: int = 0


class Conversation:
    """Turns of a user and a policy.

    A policy with a chat template sees all turns through it. One that was trained on plain text sees, between the words
    that its prompts had around them (`Human:` and `Assistant:`, say), all turns, and without such words the last line
    alone.

    Args:
        backbone: The policy.
        system: The system turn of chats. None: the one that the policy was trained with, if any.

    Raises:
        ConfigurationError: A system turn for a policy of plain text.
    """

    def __init__(self, backbone: Backbone, system: str | None = None) -> None:
        learned = backbone.prompts
        templated = backbone.tokenizer.chat_template is not None
        self.is_chat = templated and (learned is None or learned.kind != "text")
        if not self.is_chat and system is not None:
            raise ConfigurationError(
                f"--system {system!r}: this policy reads plain text, without a system turn. Leave it away."
            )
        if self.is_chat:
            system = system if system is not None else (learned.system if learned else "") or ""
            self.form = PromptForm.of_chats(backbone.tokenizer, [system])
        else:
            text = PromptForm("text", "", None)
            self.form = learned if learned is not None and learned.kind == "text" else text
        self.turns: list[Turn] = []
        self._system = [{"role": "system", "content": system}] if self.is_chat and system else []
        self._encoder = Encoder(backbone.tokenizer)

    def prompt(self) -> Text:
        """The turns as the policy is given them."""
        if self.is_chat:
            return [*self._system, *self.turns]
        before, behind = self.form.opening, self.form.closing or ""
        turns = self.turns if before.strip() and behind.strip() else self.turns[-1:]
        return "".join(
            f"{before}{turn['content']}{behind}" if turn["role"] == "user" else turn["content"]
            for turn in turns
        )

    def encoded(self, most: int | None) -> tuple[list[int], int]:
        """Tokens of the prompt, at most so many where older exchanges can be left out; how many were."""
        forgotten = 0
        while True:
            ids = self._encoder(Record(self.prompt())).prompt
            if most is None or len(ids) <= most or len(self.turns) < 3:
                return ids, forgotten
            del self.turns[:2]
            forgotten += 1


class Speaker:
    """A policy that answers, and what is thought of its answers.

    Args:
        backbone: The policy.
        conversation: Its turns; answers are added.
        sampling: How tokens are drawn.
        engine: Draws them; `NativeEngine` shows them as they come.
        reward: Scores each answer.
        seed: The same seed and the same turns give the same answers.
    """

    def __init__(
        self,
        backbone: Backbone,
        conversation: Conversation,
        sampling: Sampling,
        engine: RolloutEngine | None = None,
        reward: Reward | None = None,
        seed: int = 0,
    ) -> None:
        self.backbone, self.conversation = backbone, conversation
        self.sampling, self.engine = sampling, engine or NativeEngine()
        self.reward, self.seed = reward, seed
        self._answers = 0
        warn_of_prompts("The policy", backbone.prompts, conversation.form)
        self.engine.check(backbone)
        if reward is not None:
            reward.attach(backbone)
            reward.to(backbone.device)
            reward.check_prompts(conversation.form)

    def answer(self, text: str, show: Show) -> Answer:
        """Add a turn of the user, and answer it; on an error the conversation is as before.

        Args:
            text: What the user says.
            show: Called with each further piece of the answer.
        """
        turns = self.conversation.turns
        before = list(turns)
        turns.append({"role": "user", "content": text})
        try:
            said = self._say(show)
        except BaseException:
            turns[:] = before
            raise
        turns.append({"role": "assistant", "content": said.text})
        return said

    def again(self, show: Show) -> Answer:
        """Another answer in place of the last; on an error the conversation is as before.

        Raises:
            ConfigurationError: There is none yet.
        """
        turns = self.conversation.turns
        if not turns:
            raise ConfigurationError("Nothing was said yet.")
        before = list(turns)
        _, said = turns.pop(), turns.pop()
        try:
            return self.answer(said["content"], show)
        except BaseException:
            turns[:] = before
            raise

    def _say(self, show: Show) -> Answer:
        limits = [context_length(self.backbone)]
        if isinstance(self.engine, LocalEngine):
            limits.append(self.engine.longest(self.backbone))
        most = min((limit for limit in limits if limit), default=None)
        room = None if most is None else most - self.sampling.max_new_tokens
        ids, forgotten = self.conversation.encoded(room)
        device = self.backbone.device
        prompts = Prompts(
            torch.tensor([ids], device=device),
            torch.ones(1, len(ids), dtype=torch.bool, device=device),
        )
        seeds = sample_seeds(self.seed, self._answers, "chat", torch.tensor([0]))
        self._answers += 1
        stream = _Stream(self.backbone.tokenizer, show)
        listeners = self.engine.listeners if isinstance(self.engine, NativeEngine) else []
        listeners.append(stream)
        try:
            request = RolloutRequest(prompts, self.sampling, seeds.to(device))
            generation = self.engine.generate(self.backbone, request)
        except KeyboardInterrupt:
            return Answer(stream.shown, False, forgotten=forgotten)
        finally:
            listeners.remove(stream)
        given = {"given": [self.conversation.prompt()]}
        batch: Any = given
        completions = read_completions(self.backbone.tokenizer, prompts, generation, batch)
        (response,) = completions.responses
        show(response.removeprefix(stream.shown))
        scores = None if self.reward is None else score_completions(self.reward, completions, None)
        return Answer(response, bool(generation.finished[0]), scores, forgotten)


class _Stream:
    """Shows the text of tokens as they come; a character that isn't whole yet waits for its other tokens."""

    def __init__(self, tokenizer: Any, show: Show) -> None:
        self.shown = ""
        self._ids: list[int] = []
        self._tokenizer, self._show = tokenizer, show

    def __call__(self, rows: Tensor, tokens: Tensor) -> None:
        self._ids += tokens.tolist()
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if text.startswith(self.shown) and not text.endswith("\ufffd"):
            self._show(text[len(self.shown) :])
            self.shown = text
