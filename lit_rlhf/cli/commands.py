"""The commands of `lit-rlhf`, by what they are for.

A new one is a line here, what it writes is a line in `WRITES`, and it is a module with a function of its name, whose
arguments are the options, or else with `run(words)`.
"""

from typing import NamedTuple

_TRAIN = ("recipes", "seeds")
TRAINING = "lit_rlhf.cli.seeds"
RECIPES = "lit_rlhf.cli.recipes"


class Command(NamedTuple):
    """A command: the module that does it, and its line in the help.

    The module's `run(words)` gets the whole command line. Without one its function of the command's name gets the
    options, of which `SPECIAL` says more than their types (see `functions.call`).
    """

    module: str
    help: str


GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "train": {
        "sft": ("recipes", "Fine-tune on demonstrations: --model M --data D"),
        "reward": ("recipes", "A reward model from pairs: --model M --data D"),
        "dpo": ("recipes", "DPO on pairs: --model M --data D"),
        "kto": ("recipes", "KTO on pairs or labels: --model M --data D"),
        "ppo": ("recipes", "PPO: --model M --data PROMPTS --reward R"),
        "grpo": ("recipes", "GRPO: --model M --data PROMPTS --reward R"),
        "iterate": ("iterate", "Sample, judge, train, and again, in rounds"),
        "init": ("init", "A configuration of your own: init ppo > my.yaml"),
        "from-trl": ("from_trl", "A configuration from TRL's: from-trl dpo.py"),
        "schema": ("schema", "JSON schema of configurations, for editors"),
        "fit": ("seeds", "Train as a configuration says"),
        "validate": ("seeds", "Evaluate on data.val, or what val_fraction holds out"),
        "test": ("seeds", "Evaluate on data.test"),
        "predict": ("seeds", "Score or answer each row of data.test, into predictions.jsonl"),
    },
    "data": {
        "annotate": ("annotate", "People compare answers on a local page"),
        "label": ("label", "A model compares answers: pairs in, preferences out"),
        "data": ("data", "A file's format, a row as tokens; inspect or convert it"),
    },
    "reward": {
        "score": ("score", "Score completions with a reward model"),
        "evaluate-reward": ("evaluate_reward", "Can it be trusted? A page: --path M --data PAIRS"),
    },
    "look": {
        "demo": ("demo", "SFT, reward model and PPO in a few minutes, on a CPU"),
        "chat": ("chat", "Talk with a policy, and see the reward of its answers"),
        "completion": ("completion", 'For the shell: eval "$(lit-rlhf completion bash)"'),
        "help": ("explain", "What a name means: metrics NAME, option NAME"),
        "estimate": ("estimate", "Will it fit? Memory and time of a configuration, by card"),
        "generate": ("generate", "Sample completions from a policy"),
        "report": ("report", "A run, or several compared, as one HTML page"),
        "verify": ("verify", "Hold every method to its known optimum"),
    },
    "serve": {
        "serve-reward": ("serve_reward", "A reward model that answers over HTTP"),
    },
    "share": {
        "export": ("export", "A checkpoint as a directory for transformers"),
        "push": ("push", "An export to the hub, with a model card"),
    },
}
"""Groups in the order of the help, each with its commands: the file of each, and its line in the help."""

COMMANDS = {
    name: Command(f"lit_rlhf.cli.{file}", text)
    for group in GROUPS.values()
    for name, (file, text) in group.items()
}
"""All of them by name."""


class Written(NamedTuple):
    """What a command writes at an option; where something is there already, that is refused before any work.

    By default `--overwrite` replaces it, for it cost computing, or a person's work.

    Args:
        suffixes: One of which its name must have. A page, `.html`, has its numbers beside it, as `.json`.
        again: Text that an earlier one holds: made in a moment of what is there still, that is replaced without a word.
        marker: A directory, known by this file in it.
        own: A directory in which the command goes on, and itself refuses what isn't its own.
    """

    suffixes: tuple[str, ...] = ()
    again: str = ""
    marker: str = ""
    own: bool = False


_RESULT, _OWN = Written(), Written(own=True)
_PAGE = Written((".html",), again="it fetches nothing.</footer>")
WRITES: dict[str, dict[str, Written]] = {
    **{name: {"run_dir": _OWN} for name, (file, _) in GROUPS["train"].items() if file in _TRAIN},
    "predict": {"run_dir": _RESULT},
    "annotate": {"output": _OWN, "export": _RESULT},
    "chat": {},
    "completion": {},
    "data show": {},
    "data inspect": {"output": _PAGE},
    "data convert": {"output": Written((".jsonl", ".parquet"))},
    "demo": {"output": _OWN},
    "estimate": {},
    "evaluate-reward": {"output": Written((".html",))},
    "export": {"output": Written(marker="lit_rlhf.json")},
    "from-trl": {"output": _RESULT},
    "generate": {"output": _RESULT},
    "help": {},
    "init": {"output": _RESULT},
    "iterate": {"run_dir": _OWN},
    "label": {"output": _RESULT, "summary": Written(again='"position_bias":')},
    "push": {},
    "report": {"output": _PAGE},
    "schema": {"output": Written(again='"lit_rlhf.')},
    "score": {"output": _RESULT},
    "serve-reward": {},
    "verify": {},
}
"""What each command writes, by option."""


def overwrites(command: str) -> bool:
    """Whether it has the option `--overwrite`."""
    return any(not (each.again or each.own) for each in WRITES[command].values())


def usage() -> str:
    """The help of `lit-rlhf` itself."""
    width = max(map(len, COMMANDS))
    lines = []
    for group, commands in GROUPS.items():
        lines += [f"{group}:"]
        lines += [f"  {name:<{width}}  {text}" for name, (_, text) in commands.items()]
        lines += [""]
    return _USAGE.format(groups="\n".join(lines[:-1]))


_USAGE = """\
Align language models with human preferences, as PyTorch Lightning components.

usage: lit-rlhf COMMAND [options]
       lit-rlhf COMMAND --help
       lit-rlhf --version

{groups}

Options of a class: lit-rlhf fit --model.help PPOPolicyModule
                    lit-rlhf fit --data.help PreferenceDataModule"""
