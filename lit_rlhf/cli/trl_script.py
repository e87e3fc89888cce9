"""What a TRL script or configuration says, read without running it."""

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_rlhf.cli.trl_common import COMMON
from lit_rlhf.cli.trl_options import ALIASES, TASKS
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.hub import near_path

_PEFT = {"r": "lora_r", "target_modules": "lora_target_modules", "task_type": "lora_task_type"}
_PEFT |= {"modules_to_save": "lora_modules_to_save", "use_rslora": "use_rslora"}
_MODEL = {"torch_dtype": "dtype", "dtype": "dtype", "attn_implementation": "attn_implementation"}
_MODEL |= {"revision": "model_revision", "trust_remote_code": "trust_remote_code"}
_AS_HERE = {"bias": "none", "inference_mode": False, "fan_in_fan_out": False}
"""Options of peft that have no counterpart, and need none with these values."""
_FILES = ("json", "csv", "parquet")
_CHANGES = {"map", "filter", "select", "take", "skip", "shard", "rename_column", "rename_columns"}
_CHANGES |= {"train_test_split"}
"""Methods of a data set after which its rows aren't those of the file."""


class Script(NamedTuple):
    """What was read."""

    task: str
    options: dict[str, Any]  # by TRL's name
    unread: dict[str, str]  # what can't be read: a name, and the sentence
    rewards: str = ""  # the reward functions that it defines
    held_out: str | float | None = None  # a file, or a share of the rows


def read(path: Path, task: str | None, rewards: Path | None = None) -> Script:
    """Read a YAML file of `trl TASK --config`, or a Python script.

    Args:
        path: The file.
        task: Which configuration class; None: the one that it shows.
        rewards: Where the reward functions that a script defines will stand. None: they stay in it.

    Raises:
        ConfigurationError: It can't be read, or doesn't say which of TRL's configuration classes it is for.
    """
    if not path.is_file():
        raise ConfigurationError(
            f"There is no file {path} (looked in {Path.cwd()}).{near_path(path)} Give TRL's script or YAML."
        )
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            return _Reader(path, text, rewards).script(task)
        options = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, SyntaxError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"{path}: it can't be read: {' '.join(str(error).split())}. Give a Python script, or a YAML of "
            "`trl TASK --config`."
        ) from error
    if not isinstance(options, dict):
        raise ConfigurationError(f"{path}: a configuration of TRL is `option: value` in each line.")
    unread = {}
    if options.pop("env", None) is not None:
        unread["env"] = "Set variables of the environment where you start the run."
    options = {ALIASES.get(str(name), str(name)): value for name, value in options.items()}
    return Script(task or _guess(path, options), options, unread)


def _guess(path: Path, options: Iterable[str]) -> str:
    """The one configuration class that has all of them."""
    own = {name for name in options if name not in COMMON}
    fits = [task for task in TASKS if own <= set(TASKS[task].options)]
    if len(fits) == 1:
        return fits[0]
    commands = ", ".join(name.removesuffix("Config").lower() for name in fits or TASKS)
    raise ConfigurationError(
        f"{path}: its options are those of more than one task, or of none. Say which by --task, of {commands}."
    )


class _Reader:
    """Calls with literal arguments, and names that are assigned a literal."""

    def __init__(self, path: Path, text: str, rewards: Path | None) -> None:
        self.path = path
        self.text = text
        self.rewards = rewards
        self.moved: list[str] = []
        self.tree = ast.parse(text, filename=str(path))
        nodes = [node for node in ast.walk(self.tree) if isinstance(node, ast.Assign)]
        self.names = {
            node.targets[0].id: node.value
            for node in nodes
            if isinstance(node.targets[0], ast.Name)
        }
        self.calls = [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        self.options: dict[str, Any] = {}
        self.unread: dict[str, str] = {}
        self.held_out: str | float | None = None
        self.several: list[str] = []

    def script(self, task: str | None) -> Script:
        """All that it says of one configuration class."""
        found = {name: call for call in self.calls if (name := self.called(call)) in TASKS}
        if task is not None:
            found = {name: call for name, call in found.items() if name == task}
        if len(found) != 1:
            said = (
                f"it makes {', '.join(found)}: say which by --task"
                if found
                else (f"it makes none of {', '.join(TASKS)}")
            )
            raise ConfigurationError(f"{self.path}: {said}.")
        ((task, config),) = found.items()
        self.take(config, ALIASES)
        for call in self.calls:
            self.read_call(call, self.called(call), f"{task.removesuffix('Config')}Trainer")
        if self.several:
            names = ", ".join([self.options.pop("dataset_name"), *self.several])
            self.unread["load_dataset"] = (
                f"It loads several ({names}): set `data.train`, and `data.val` where one is for evaluation."
            )
        for name, value in (self.options.pop("model_init_kwargs", None) or {}).items():
            self.options.setdefault(_MODEL.get(name, f"model_init_kwargs.{name}"), value)
        text = _excerpt(self.tree, self.text, self.moved) if self.moved else ""
        return Script(task, self.options, self.unread, text, self.held_out)

    def read_call(self, call: ast.Call, name: str, trainer: str) -> None:
        """A call of another function or class."""
        if name == "LoraConfig":
            self.options["use_peft"] = True
            self.take(call, _PEFT)
            for each, value in _AS_HERE.items():
                if self.options.get(each) == value:
                    del self.options[each]
        elif name == "BitsAndBytesConfig":
            self.take(call, {})
        elif name == "load_dataset":
            self.data_set(call)
        elif name in _CHANGES and isinstance(call.func, ast.Attribute):
            self.change(call)
        elif name == "from_pretrained" and "Tokenizer" not in ast.unparse(call.func):
            self.model(call)
        elif name == trainer:
            self.trainer(call)

    def change(self, call: ast.Call) -> None:
        """What becomes of the rows that were loaded."""
        if self.called(call) != "train_test_split":
            self.unread[f"{ast.unparse(call.func)[-40:]}()"] = (
                "Rows are read as they lie in the file. If this changes what the model or the rewards see, save the "
                "changed rows (`to_json`), and name that file in `data.train`."
            )
            return
        size = [each.value for each in call.keywords if each.arg == "test_size"] + call.args[:1]
        if size and self.is_literal(size[0]) and isinstance(share := self.literal(size[0]), float):
            self.held_out = share
        else:
            self.unread["train_test_split()"] = (
                f"`{ast.unparse(call)[-60:]}` gives no share as `test_size`: set `data.val_fraction`, or `data.val`."
            )

    def called(self, call: ast.Call) -> str:
        """The last part of the function's name."""
        return ast.unparse(call.func).rpartition(".")[2]

    def literal(self, node: ast.AST) -> Any:
        """A literal, or a name that stands for one; `torch.bfloat16` is bfloat16, `TaskType.SEQ_CLS` SEQ_CLS.

        Raises:
            ValueError: It is neither.
        """
        if isinstance(node, ast.Name) and isinstance(self.names.get(node.id), ast.Constant):
            node = self.names[node.id]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("torch", "TaskType"):
            return node.attr
        if isinstance(node, ast.List | ast.Tuple):
            return [self.literal(each) for each in node.elts]
        if isinstance(node, ast.Dict) and all(node.keys):
            keys = [self.literal(key) for key in node.keys if key is not None]
            return dict(zip(keys, map(self.literal, node.values), strict=True))
        return ast.literal_eval(node)

    def take(self, call: ast.Call, names: dict[str, str]) -> None:
        """The keyword arguments of a call."""
        for keyword in call.keywords:
            name = names.get(keyword.arg or "**", keyword.arg or "**")
            self.put(name, keyword.value)
        if call.args:
            self.unread[ast.unparse(call)[:60]] = "Arguments without a name aren't read."

    def put(self, name: str, node: ast.AST) -> None:
        """One option."""
        try:
            self.options[name] = self.literal(node)
        except (ValueError, TypeError):
            self.unread[name] = f"`{ast.unparse(node)[:60]}` is no literal: set it yourself."

    def model(self, call: ast.Call) -> None:
        """The policy's weights, where the trainer is given a loaded model."""
        if call.args and "model_name_or_path" not in self.options:
            self.put("model_name_or_path", call.args[0])
        for keyword in call.keywords:
            if keyword.arg in _MODEL:
                self.put(_MODEL[keyword.arg], keyword.value)

    def data_set(self, call: ast.Call) -> None:
        """`load_dataset(name, config, split=...)`, or of files."""
        given = {k.arg: k.value for k in call.keywords if k.arg}
        given |= dict(zip(("path", "name"), call.args, strict=False))
        read = {name: self.literal(node) for name, node in given.items() if self.is_literal(node)}
        split = read.get("split", "train")
        if not isinstance(split, str) or "test" in split or "val" in split or "eval" in split:
            self.options["dataset_test_split"] = split
            return
        name = read.get("data_files") if read.get("path") in _FILES else read.get("path")
        if isinstance(name, dict):
            files = [each for part, each in name.items() if part != "train"]
            if len(files) == 1 and isinstance(files[0], str):
                self.held_out = files[0]
            name = name.get("train")
        if isinstance(name, list) and len(name) == 1:
            (name,) = name
        if not isinstance(name, str):
            self.unread["load_dataset"] = (
                f"`{ast.unparse(call)[:60]}` names no one file or data set: set `data.train`."
            )
            return
        if self.options.setdefault("dataset_name", name) != name:
            self.several.append(name)
            return
        if "split" in read:
            self.options["dataset_train_split"] = split
        if read.get("name") is not None:
            self.options["dataset_config"] = read["name"]

    def is_literal(self, node: ast.AST) -> bool:
        """Whether it can be read."""
        try:
            self.literal(node)
        except (ValueError, TypeError):
            return False
        return True

    def trainer(self, call: ast.Call) -> None:
        """The model by name, and rewards by name or as functions of the script."""
        for keyword in call.keywords:
            if keyword.arg == "model" and self.is_literal(keyword.value):
                self.put("model_name_or_path", keyword.value)
            elif keyword.arg == "reward_funcs":
                node = keyword.value
                listed = node.elts if isinstance(node, ast.List | ast.Tuple) else [node]
                self.options["reward_funcs"] = [self.reward(each) for each in listed]

    def reward(self, node: ast.AST) -> str:
        """A model's name; `file.py:name` of what the script defines, `package.name` of a function of another."""
        if self.is_literal(node):
            return str(self.literal(node))
        name = ast.unparse(node)
        for each in ast.walk(self.tree):
            if isinstance(each, ast.ImportFrom):
                for alias in each.names:
                    if (alias.asname or alias.name) == name:
                        return f"{each.module}.{alias.name}"
        if not any(name in _defines(each) for each in self.tree.body):
            self.unread[f"reward_funcs: {name[:60]}"] = (
                "It has no name at the top of the script: set `model.reward` yourself."
            )
            return name
        if self.rewards is None:
            self.unread[f"reward_funcs: {name}"] = (
                f'Loading it runs {self.path.name}: keep the training under `if __name__ == "__main__":`. With '
                "--output it is written into a file of its own."
            )
            return f"{self.path}:{name}"
        self.moved.append(name)
        return f"{self.rewards}:{name}"


def _excerpt(tree: ast.Module, text: str, names: Iterable[str]) -> str:
    """The statements of a module that define names, and those that these need, as they stand and in their order."""
    kept: set[ast.stmt] = set()
    wanted = set(names)
    while found := {each for each in tree.body if wanted & _defines(each)} - kept:
        kept |= found
        wanted |= {
            node.id for each in found for node in ast.walk(each) if isinstance(node, ast.Name)
        }
    lines = text.splitlines()
    parts = []
    for each in (each for each in tree.body if each in kept):
        first = min(node.lineno for node in (each, *getattr(each, "decorator_list", ())))
        parts.append("\n".join(lines[first - 1 : each.end_lineno]))
    return "\n\n\n".join(parts) + "\n"


def _defines(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top of a module defines; what is for the script alone defines none."""
    if isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test):
        return set()
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    names = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    return names
