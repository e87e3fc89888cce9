"""What an option is called elsewhere: by other libraries, by TRL, and by another of our commands."""

import re
from collections.abc import Iterator

from lit_rlhf.cli.commands import COMMANDS, RECIPES, TRAINING
from lit_rlhf.cli.completion import LIKE_FIT
from lit_rlhf.cli.shipped import RECIPES as SHORT_NAMES
from lit_rlhf.cli.trl_options import ALIASES, TASKS, option
from lit_rlhf.errors import did_you_mean

_PLACES = re.compile(r"`[a-z_.]+`(, `[a-z_.]+`)*")
"""What TRL's table gives where our options have the value as it is."""

_MODEL = "model policy path checkpoint ckpt_path reward_model model_name_or_path"
_ROWS = "data prompts dataset dataset_name file train_data"
_WHERE = "output output_dir run_dir save_dir out"
_RUN = "run run_dir runs"

TABLE = (
    # -- training; what TRL calls an option stands in TRL's table, unless ours says more
    ("lr", "model.optimizer.lr", ""),
    ("batch_size train_batch_size", "data.batch_size", ""),
    ("epochs num_epochs max_epochs", "trainer.max_epochs", ""),
    ("steps num_steps max_steps", "trainer.callbacks+ StopAfter --trainer.callbacks.steps", ""),
    ("lora_rank rank", "model.backbone.lora.rank", ""),
    ("quantization", "model.backbone.quantization", ""),
    ("precision", "trainer.precision", ""),
    ("max_seq_length max_completion_length", "data.max_completion_length", "sft reward dpo kto"),
    ("beta", "model.loss.beta", "dpo kto"),
    ("beta kl_coef init_kl_coef", "model.kl.coef", "ppo grpo"),
    ("loss loss_type", "model.loss", "reward dpo kto"),
    ("max_new_tokens max_completion_length response_length", "model.sampling.max_new_tokens", "ppo grpo"),
    ("num_samples", "model.num_samples", "grpo"),
    ("output save_dir", "run_dir", ""),
    ("resume resume_from_checkpoint", "ckpt_path last", ""),
    ("format", "data.format", ""),
    ("prompts dataset file train_data", "data.train.path", ""),
    ("val eval_data val_data eval_dataset", "data.val FileSource --data.val.path", ""),
    ("policy path", "model.backbone.name", ""),
    ("reward reward_model", "model.reward.path", "ppo grpo"),
    ("devices gpus num_gpus num_processes", "trainer.devices", ""),
    ("logger", "trainer.logger", ""),
    # -- the same thing under another name of ours; capitals are what is given without a name
    (_MODEL, "model", "generate"),
    (f"{_MODEL} reward", "model", "score"),
    (f"{_MODEL} reward", "path", "evaluate-reward serve-reward"),
    (_MODEL, "policy", "iterate"),
    (_MODEL, "MODEL", "chat"),
    (_MODEL, "PATH", "push"),
    (f"{_MODEL} run run_dir", "ckpt_path", "export"),
    (_ROWS, "prompts", "generate"),
    (_ROWS, "data", "score evaluate-reward"),
    (f"{_ROWS} path", "DATA", "label annotate"),
    (f"{_ROWS} path", "FILE", "data"),
    (_ROWS, "method.prompts or --method.feedback.prompts", "iterate"),
    (_WHERE, "output", "generate score evaluate-reward label annotate data demo export from-trl init schema report"),
    (_WHERE, "run_dir", "iterate"),
    ("repo repo_id hub_model_id", "REPO", "push"),
    (_RUN, "run", "data push"),
    (_RUN, "RUNS", "report"),
    ("model", "judge.model or --judge.backbone.name", "label"),
    ("model", "tokenizer", "data"),
    ("batch_size", "batch_tokens", "evaluate-reward serve-reward"),
    ("batch_tokens", "batch_size", "generate score"),
    ("n num_generations num_return_sequences", "num_samples", "generate"),
    ("temperature", "sampling.temperature", "generate chat"),
    ("max_new_tokens max_tokens max_completion_length", "sampling.max_new_tokens", "generate chat"),
    ("top_p", "sampling.top_p", "generate chat"),
    ("top_k", "sampling.top_k", "generate chat"),
    ("num_rounds iterations", "rounds", "iterate"),
    ("gpu", "card", "estimate"),
)  # fmt: skip
"""Names; ours; and the commands that have it: recipes, which `fit` and its like have all; none: all that train."""


def by_another_name(name: str, command: str) -> str:
    """A question for our options that others call so, with a space before it; empty where none is.

    Args:
        name: As it was given.
        command: Of whose options is asked; one of `data` with its second word.

    Example:
        >>> by_another_name("--data", "generate"), by_another_name("--model", "chat")
        (' Did you mean --prompts?', ' Did you mean MODEL, without a name?')
    """
    name, command = name.removeprefix("--").replace("-", "_"), command.split(maxsplit=1)[0]
    ours = [
        f"{option}, without a name" if option.isupper() else f"--{option}"
        for names, option, commands in TABLE
        if name in names.split() and name != option and _has(command, commands)
    ]
    return did_you_mean(dict.fromkeys([*ours, *_of_trl(name, command)]))


def _has(command: str, commands: str) -> bool:
    """Whether a row of the table is for a command."""
    trains = COMMANDS[command].module in (TRAINING, RECIPES) or command in LIKE_FIT
    any_recipe = not SHORT_NAMES.keys().isdisjoint(commands.split())
    of_all = not commands or (command not in SHORT_NAMES and any_recipe)
    return command in commands.split() or (trains and of_all)


def _of_trl(name: str, command: str) -> Iterator[str]:
    """Our options for one of TRL's, by the table that `from-trl` goes by."""
    if not _has(command, ""):
        return
    recipe = SHORT_NAMES.get(command)
    for task in TASKS:
        known = option(task, ALIASES.get(name, name))
        fits = known and recipe in (None, TASKS[task].recipe) and _PLACES.fullmatch(known.ours)
        if known and fits:
            yield " and ".join(f"--{each.strip('`')}" for each in known.ours.split(", "))
