"""The commands of `lit-rlhf`, by what they are for.

A new one is a line here, and a module with a function of its name, whose arguments are the options, or else with
`run(words)`.
"""

from typing import NamedTuple

TRAINING = "lit_rlhf.cli.seeds"
RECIPES = "lit_rlhf.cli.recipes"


class Command(NamedTuple):
    """A command: the module that does it, and its line in the help.

    The module's `run(words)` gets the whole command line. Without one its function of the command's name gets the
    options, of which `SPECIAL` says more than their types (see `functions.call`).
    """

    module: str
    help: str


GROUPS: dict[str, dict[str, Command]] = {
    "train": {
        "sft": Command(RECIPES, "Fine-tune on demonstrations: --model M --data D"),
        "reward": Command(RECIPES, "A reward model from pairs: --model M --data D"),
        "dpo": Command(RECIPES, "DPO on pairs: --model M --data D"),
        "kto": Command(RECIPES, "KTO on pairs or labels: --model M --data D"),
        "ppo": Command(RECIPES, "PPO: --model M --data PROMPTS --reward R"),
        "grpo": Command(RECIPES, "GRPO: --model M --data PROMPTS --reward R"),
        "iterate": Command("lit_rlhf.cli.iterate", "Sample, judge, train, and again, in rounds"),
        "init": Command("lit_rlhf.cli.init", "A configuration of your own: init ppo > my.yaml"),
        "from-trl": Command("lit_rlhf.cli.from_trl", "A configuration from TRL's: from-trl dpo.py"),
        "schema": Command("lit_rlhf.cli.schema", "JSON schema of configurations, for editors"),
        "fit": Command(TRAINING, "Train as a configuration says"),
        "validate": Command(TRAINING, "Evaluate on the validation set of a configuration"),
        "test": Command(TRAINING, "Evaluate on its test set"),
        "predict": Command(TRAINING, "Scores or completions for its prediction set"),
    },
    "data": {
        "annotate": Command("lit_rlhf.cli.annotate", "People compare answers on a local page"),
        "label": Command(
            "lit_rlhf.cli.label", "A model compares answers: pairs in, preferences out"
        ),
        "data": Command(
            "lit_rlhf.cli.data", "A file's format, a row as tokens; inspect or convert it"
        ),
    },
    "reward": {
        "score": Command("lit_rlhf.cli.score", "Score completions with a reward model"),
        "evaluate-reward": Command(
            "lit_rlhf.cli.evaluate_reward", "Can it be trusted? A page: --path M --data PAIRS"
        ),
    },
    "look": {
        "demo": Command(
            "lit_rlhf.cli.demo", "SFT, reward model and PPO in a few minutes, on a CPU"
        ),
        "chat": Command(
            "lit_rlhf.cli.chat", "Talk with a policy, and see the reward of its answers"
        ),
        "completion": Command(
            "lit_rlhf.cli.completion", 'For the shell: eval "$(lit-rlhf completion bash)"'
        ),
        "help": Command("lit_rlhf.cli.explain", "What a name means: metrics NAME, option NAME"),
        "estimate": Command(
            "lit_rlhf.cli.estimate", "Will it fit? Memory and time of a configuration, by card"
        ),
        "generate": Command("lit_rlhf.cli.generate", "Sample completions from a policy"),
        "report": Command("lit_rlhf.cli.report", "A run, or several compared, as one HTML page"),
        "verify": Command("lit_rlhf.cli.verify", "Hold every method to its known optimum"),
    },
    "serve": {
        "serve-reward": Command(
            "lit_rlhf.cli.serve_reward", "A reward model that answers over HTTP"
        ),
    },
    "share": {
        "export": Command("lit_rlhf.cli.export", "A checkpoint as a directory for transformers"),
        "push": Command("lit_rlhf.cli.push", "An export to the hub, with a model card"),
    },
}
"""Groups in the order of the help, each with its commands."""

COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
"""All of them by name."""


def usage() -> str:
    """The help of `lit-rlhf` itself."""
    width = max(map(len, COMMANDS))
    groups = "\n\n".join(
        "\n".join([f"{group}:", *(f"  {name:<{width}}  {c.help}" for name, c in commands.items())])
        for group, commands in GROUPS.items()
        if commands
    )
    return _USAGE.format(groups=groups)


_USAGE = """\
Align language models with human preferences, as PyTorch Lightning components.

usage: lit-rlhf COMMAND [options]
       lit-rlhf COMMAND --help
       lit-rlhf --version

{groups}

Options of a class: lit-rlhf fit --model.help PPOPolicyModule
                    lit-rlhf fit --data.help PreferenceDataModule"""
