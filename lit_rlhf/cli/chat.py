"""`lit-rlhf chat`: talk with a policy in the terminal, and see what a reward thinks of its answers."""

import os
import re
import sys
from collections.abc import Iterator

from lit_rlhf.cli.conversation import Answer, Conversation, Speaker
from lit_rlhf.cli.functions import Special
from lit_rlhf.errors import ConfigurationError, LitRLHFError
from lit_rlhf.models import load_policy
from lit_rlhf.models.precision import default_device
from lit_rlhf.models.specs import DTypeOption
from lit_rlhf.rewards import ModelReward, Reward
from lit_rlhf.rollout import RolloutEngine, Sampling

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SAMPLING = Sampling(max_new_tokens=256)
_HELP = """\
/again   another answer to the last question
/reset   forget what was said
/help    these lines
/quit    end, as does Ctrl-D; Ctrl-C breaks an answer off"""
SPECIAL: Special = {"model": {}}


def chat(
    model: str,
    reward: Reward | str | None = None,
    system: str | None = None,
    sampling: Sampling = _SAMPLING,
    engine: RolloutEngine | None = None,
    dtype: DTypeOption = "auto",
    device: str | None = None,
    seed: int = 0,
) -> None:
    """Talk with a policy; answers appear as they are written.

    All turns are given to the policy through its chat template, or, where it was trained on plain text, with the words
    around them that its prompts had. Turns that no longer fit its context are forgotten, the oldest first.

    Where input is no terminal, each line of it is a turn: answers go to standard output, scores to standard error.

    Args:
        model: A policy: an export, a peft adapter, a checkpoint (.ckpt), or a causal language model of the hub.
        reward: Scores each answer: the path of a reward model, or a class such as LengthReward.
        system: The system turn; default: the one that the policy was trained with, if any.
        sampling: Length limit, temperature, top-k, top-p; temperature 0 takes the likeliest token.
        engine: Default `NativeEngine`; others show an answer when it is complete.
        dtype: Of the policy's weights; auto: bfloat16 where the device multiplies it, float32 elsewhere.
        device: cpu, cuda, cuda:1; default: the first GPU, if there is one.
        seed: The same seed and turns give the same answers.
    """
    backbone = load_policy(model, dtype=dtype).to(device or default_device())
    scored = ModelReward(reward) if isinstance(reward, str) else reward
    conversation = Conversation(backbone, system)
    speaker = Speaker(backbone, conversation, sampling, engine, scored, seed)
    try:
        _talk(speaker, model)
    except BrokenPipeError:  # of `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _talk(speaker: Speaker, model: str) -> None:
    alone = not sys.stdin.isatty()
    if not alone:
        _tell(
            f"{model}: {'chat' if speaker.conversation.is_chat else 'plain text'}. /help lists the commands."
        )
    for line in _lines(alone):
        try:
            if line.startswith("/"):
                if _command(line, speaker) == "quit":
                    return
            elif line.strip():
                _report(speaker.answer(line, _show))
        except LitRLHFError as error:
            if alone:
                raise
            _tell(str(error))


def _lines(alone: bool) -> Iterator[str]:
    """What the user says, line by line."""
    if alone:
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    import readline  # noqa: F401, PLC0415 - input() edits lines and remembers them once it is there

    while True:
        try:
            yield input("\n> ")
        except (EOFError, KeyboardInterrupt):
            _tell("")
            return


def _command(line: str, speaker: Speaker) -> str:
    name = line[1:].strip()
    if name == "again":
        _report(speaker.again(_show))
    elif name == "reset":
        speaker.conversation.turns.clear()
    elif name == "help":
        _tell(_HELP)
    elif name not in ("quit", "exit"):
        raise ConfigurationError(f"There is no command {line!r}:\n{_HELP}")
    return "quit" if name in ("quit", "exit") else name


def _report(answer: Answer) -> None:
    """End the answer's line, and say what is to be said of it."""
    _show("\n")
    if answer.forgotten:
        _tell(f"[the oldest {answer.forgotten} exchanges no longer fit, and are forgotten]")
    if answer.scores is not None:
        parts = answer.scores.parts
        of = ", ".join(f"{name} {float(part[0]):.4g}" for name, part in parts.items())
        _tell(f"[reward {float(answer.scores.total[0]):.4g}{f': {of}' if of else ''}]")
    if not answer.finished:
        _tell("[cut]")


def _show(text: str) -> None:
    # What a model writes must not steer the terminal.
    sys.stdout.write(_CONTROL.sub("\ufffd", text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _tell(text: str) -> None:
    """What isn't the policy's: kept out of a pipe."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
