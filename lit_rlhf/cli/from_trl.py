"""`lit-rlhf from-trl`: a configuration of ours from one of TRL."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_rlhf.cli.commands import Written
from lit_rlhf.cli.functions import call
from lit_rlhf.cli.output import print_text, refuse_output
from lit_rlhf.cli.shipped import config_names, find_config, load_yaml, whole_text
from lit_rlhf.cli.trl_options import ALIASES, TASKS, defaults, option
from lit_rlhf.cli.trl_rules import NotCarried, component
from lit_rlhf.cli.trl_script import Script, read
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.files import write_text

_MISSING = "NAME_YOUR_DATA.jsonl"
"""Where TRL's data set couldn't be read: a run ends and says so."""

_FILE = re.compile(r"\.(jsonl|json|csv|tsv|parquet)(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)
"""Ends the name of a file: data sets of the hub have points in their names, too."""

TaskName = Literal["sft", "reward", "dpo", "kto", "ppo", "grpo", "rloo"]


def from_trl(script: Path, task: TaskName | None = None, output: Path | None = None) -> None:
    """Write a configuration from TRL's: a YAML of `trl TASK --config`, or a Python script, which is read and never run.

    Args:
        script: The file.
        task: Whose configuration it is, where a YAML doesn't show it or a script has several.
        output: File to write; default: standard output. Reward functions of the script are written beside it.
    """
    kinds = {name.removesuffix("Config").lower(): name for name in TASKS}
    rewards = output.with_name(f"{output.stem}_rewards.py") if output else None
    found = read(script, kinds[task] if task else None, rewards)
    writer = Writer(found)
    text = translate(writer, script, output)
    if output is None or rewards is None:
        print_text(text)
        return
    written = {output: text} | ({rewards: found.rewards} if found.rewards else {})
    if found.rewards:  # those of a configuration that is replaced are replaced with it
        refuse_output(rewards, "--output", Written(), [script], overwrite=output.exists())
    for file, words in written.items():
        write_text(file, words)
    names = " and ".join(map(str, written))
    left = ", ".join(writer.left)
    print_text(f"Wrote {names}. Not carried over: {left or 'nothing'}.\n")


def translate(writer: "Writer", path: Path, output: Path | None = None) -> str:
    """The YAML: a shipped recipe with TRL's options in it, a comment behind each."""
    left = "".join(f"#   {name}: {why}\n" for name, why in writer.left.items())
    target = shlex.quote(str(output or "my.yaml"))
    recipe = f"{writer.recipe} (lit-rlhf init {writer.recipe} explains it)"
    head = f"# From {path}, {writer.task} of TRL, on the recipe {recipe}.\n"
    head += f"#   lit-rlhf fit -c {target}\n"
    head += f"# Not carried over:\n{left}" if left else "# All of it was carried over.\n"
    return head + "\n".join(_lines(writer.config, writer.comments)) + "\n"


class Writer:
    """A recipe that takes options of TRL.

    Attributes:
        task: TRL's configuration class.
        recipe: The shipped configuration that it starts from.
        config: What becomes of it.
        comments: By the place in `config`, where a value is from.
        left: Options that weren't carried over, and why.
    """

    def __init__(self, script: Script) -> None:
        self.task, task = script.task, TASKS[script.task]
        lora = bool(script.options.get("use_peft"))
        full = task.recipe.replace("lora", "full")
        self.recipe = full if not lora and full in config_names() else task.recipe
        self.config = load_yaml(whole_text(find_config(self.recipe)))
        self.comments: dict[tuple[str | int, ...], str] = {}
        self.left: dict[str, str] = {}
        if self.recipe == task.recipe and not lora:
            for name, value in (("lora", None), ("dtype", "float32")):
                self.set(f"model.backbone.{name}", value, "every weight is trained: no use_peft")
        for place, (value, why) in task.fixed.items():
            self.set(place, value, why)
        self.given = defaults(script.task) | script.options
        self.carry(script)
        self.left |= script.unread
        self.lacking(script)
        self.source(script.options, script.held_out)

    def carry(self, script: Script) -> None:
        """Set all that has a counterpart, wholes before their parts."""
        found: dict[str, tuple[Any, str]] = {}
        for name, value in self.given.items():
            known = option(script.task, ALIASES.get(name, name))
            if known is None or known.rule is None:
                self.left[name] = (
                    known.note if known else f"Not an option of {script.task} that is known here."
                )
                continue
            set_by = name if name in script.options else f"{name}, TRL's default"
            try:
                made = known.rule(value, self.given)
            except TypeError as error:
                raise ConfigurationError(
                    f"{name}={value!r} can't be carried over: {error}. Look at it, and at what it goes with."
                ) from error
            except NotCarried as reason:
                if name in script.options or name in ("lr_scheduler_type", "loss_type"):
                    self.left[set_by] = str(reason)
                continue
            for place, each in made.items():
                found[place] = (each, set_by)
        for place in sorted(found, key=lambda place: place.count(".")):
            self.set(place, *found[place])

    def lacking(self, script: Script) -> None:
        """Say where the recipe's own model or reward stands because the script shows none."""
        names = {**script.options, **script.unread}
        if not {"model_name_or_path", "sft_model_path"} & names.keys():
            self.left["model_name_or_path"] = (
                "None was found: set `model.backbone.name` and `data.tokenizer`, where the recipe's stand."
            )
        if (
            self.task in ("PPOConfig", "GRPOConfig", "RLOOConfig")
            and not {
                "reward_model_path",
                "reward_model_name_or_path",
                "reward_funcs",
            }
            & names.keys()
        ):
            self.left["reward"] = "None was found: set `model.reward`, where the recipe's stands."

    def set(self, place: str, value: Any, comment: str) -> None:
        """Set an option by its dotted name; of a list, the class of that name, or one more."""
        node: Any = self.config
        at: tuple[str | int, ...] = ()
        *parts, last = place.split(".")
        for part in parts:
            node, at = _inside(node, at)
            key: Any = part
            if isinstance(node, list):
                paths = [each["class_path"] if isinstance(each, dict) else each for each in node]
                key = paths.index(part)
            elif node.get(part) is None:
                node[part] = {}
            if not isinstance(node[key], dict | list):
                node[key] = component(node[key])
            node, at = node[key], (*at, key)
        if isinstance(node, list):
            node.append(value)
            self.comments[(*at, len(node) - 1)] = comment
            return
        if last != "class_path":
            node, at = _inside(node, at)
        node[last] = value
        self.comments[(*at, last)] = comment

    def source(self, options: Mapping[str, Any], held_out: str | float | None) -> None:
        """The data set, and the part that it evaluates on; one that wasn't found is never the recipe's own."""
        evaluates = "dataset_test_split" in options or options.get("eval_strategy", "no") != "no"
        if isinstance(held_out, float):  # evaluated or not, it isn't trained on
            self.set("data.val_fraction", held_out, "train_test_split")
        elif not evaluates:
            self.set("data.val_fraction", 0.0, "eval_strategy: nothing is held out")
        elif held_out is not None:
            self.set("data.val", component("FileSource", path=held_out), "data_files")
            self.set("data.val_fraction", 0.0, "data_files")
        name = options.get("dataset_name")
        if name is None:
            self.set("data.train", component("FileSource", path=_MISSING), "set it")
            if "load_dataset" not in self.left:
                self.left["train_dataset"] = "No `load_dataset` names it: set `data.train`."
            return
        if _FILE.search(name):
            self.set("data.train", component("FileSource", path=name), "dataset_name")
            return
        held: dict[str, Any] = {"name": name, "split": options.get("dataset_train_split", "train")}
        if options.get("dataset_config") is not None:
            held["config"] = options["dataset_config"]
        self.set("data.train", component("HubSource", **held), "dataset_name")
        if evaluates:
            test = held | {"split": options.get("dataset_test_split", "test")}
            self.set("data.val", component("HubSource", **test), "dataset_test_split")
            self.set("data.val_fraction", 0.0, "dataset_test_split")


def _inside(node: Any, at: tuple[str | int, ...]) -> tuple[Any, tuple[str | int, ...]]:
    """Where the options of a node are: of a class, its arguments."""
    if isinstance(node, dict) and "class_path" in node:
        return node.setdefault("init_args", {}), (*at, "init_args")
    return node, at


def _lines(
    node: Any, comments: Mapping[tuple[str | int, ...], str], at: tuple[str | int, ...] = ()
) -> Iterator[str]:
    """YAML in blocks, with the comments of its places."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        place = (*at, key)
        said = f"  # {comments[place]}" if place in comments else ""
        head = f"{key}:" if isinstance(node, dict) else "-"
        if isinstance(value, dict | list) and value:
            inner = [f"  {line}" for line in _lines(value, comments, place)]
            if isinstance(node, list) and not said:
                yield f"- {inner.pop(0).strip()}"
            else:
                yield f"{head}{said}"
            yield from inner
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
            text = text.removesuffix("...\n").strip()
            yield f"{head} {text}{said}"


def run(words: Sequence[str]) -> None:
    """Parse a command line and run it."""
    named = len(words) > 1 and not words[1].startswith("-")
    call(from_trl, ["--script", *words[1:]] if named else words[1:], "from-trl")
