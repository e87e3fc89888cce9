"""What a TRL script or configuration says, read without running it."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_rlhf.cli.trl_data import DataSets
from lit_rlhf.cli.trl_names import Names, called, defines, excerpt
from lit_rlhf.cli.trl_options import ALIASES, COMMON, TASKS, option
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.files import near_path

_PEFT = {"r": "lora_r", "target_modules": "lora_target_modules", "task_type": "lora_task_type"}
_PEFT |= {"modules_to_save": "lora_modules_to_save", "use_rslora": "use_rslora"}
_MODEL = {"torch_dtype": "dtype", "dtype": "dtype", "attn_implementation": "attn_implementation"}
_MODEL |= {"revision": "model_revision", "trust_remote_code": "trust_remote_code"}
_MODEL |= {"load_in_4bit": "load_in_4bit", "load_in_8bit": "load_in_8bit"}
_MODEL |= {"max_seq_length": "max_length"}
_NAMED = ("pretrained_model_name_or_path", "model_name")
_UNREAD_OF_MODEL = {"device_map", "use_cache", "low_cpu_mem_usage", "num_labels", "token"}
_UNREAD_OF_MODEL |= {"quantization_config", "cache_dir", "local_files_only", *_NAMED}
"""Where a model is loaded: what is the same here, or read elsewhere."""
_AS_HERE = {"bias": "none", "inference_mode": False, "fan_in_fan_out": False}
"""Options of peft that have no counterpart, and need none with these values."""
_LAUNCH = ("accelerate_config", "num_processes", "num_machines")
_READ_ELSEWHERE = {"args", "train_dataset", "eval_dataset", "peft_config", "value_model"}
"""Arguments of a trainer whose making is read."""
_MISSING_REWARD = "NAME_YOUR_REWARD.py"
"""Where a reward couldn't be read: a run ends and says so."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
"""A number that YAML takes for a text, for it has no point or no sign."""


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
    if path.suffix == ".ipynb":
        raise ConfigurationError(
            f"{path} is a notebook: make a script of it (`jupyter nbconvert --to script {path}`), and give that."
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
    for name in _LAUNCH:
        if options.pop(name, None) is not None:
            unread[name] = str(COMMON["deepspeed"].note)
    options = {ALIASES.get(str(name), str(name)): _number(value) for name, value in options.items()}
    return Script(task or _guess(path, options), options, unread)


def _number(value: Any) -> Any:
    """`1e-5` is a number for TRL's parser, and a text for YAML."""
    if isinstance(value, list):
        return [_number(each) for each in value]
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


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
    """Calls with literal arguments, and names that stand for a literal."""

    def __init__(self, path: Path, text: str, rewards: Path | None) -> None:
        self.path = path
        self.text = text
        self.rewards = rewards
        self.task = ""
        self.moved: list[str] = []
        self.tree = ast.parse(text, filename=str(path))
        self.names = Names(self.tree)
        self.calls = [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        self.options: dict[str, Any] = {}
        self.unread: dict[str, str] = {}
        self.data = DataSets(self.names)
        self.models: list[ast.Call] = []
        self.beside: dict[str, ast.AST] = {}

    def script(self, task: str | None) -> Script:
        """All that it says of one configuration class."""
        self.task, config = self.configuration(task)
        self.take(config, ALIASES)
        for call in self.calls:
            self.read_call(call, called(call))
        for call in self.calls:
            if called(call).endswith(f"{self.task.removesuffix('Config')}Trainer"):
                self.trainer(call)
        self.set_later([config])
        self.policy()
        self.options |= self.data.options()
        self.unread |= self.data.unread
        for name, value in (self.options.pop("model_init_kwargs", None) or {}).items():
            self.options.setdefault(_MODEL.get(name, f"model_init_kwargs.{name}"), value)
        text = excerpt(self.tree, self.text, self.moved) if self.moved else ""
        return Script(self.task, self.options, self.unread, text, self.data.held_out)

    def configuration(self, task: str | None) -> tuple[str, ast.Call]:
        """The call of one configuration class, the last of several.

        Raises:
            ConfigurationError: There is none, or those of several classes.
        """
        made = [(name, call) for call in self.calls if (name := called(call)) in TASKS]
        made = [(name, call) for name, call in made if task in (None, name)]
        found = list(dict.fromkeys(name for name, _ in made))
        if len(found) > 1:
            raise ConfigurationError(
                f"{self.path}: it makes {', '.join(found)}: say which by --task."
            )
        if not found:
            named = [
                node.id
                for node in ast.walk(self.tree)
                if isinstance(node, ast.Name) and node.id in TASKS
            ]
            way_out = (
                f". It takes the options of {named[0]} from its command line: write those of your call into a YAML, "
                "each `--option value` as a line `option: value` (a list in brackets, an option alone as true), and "
                f"give that: `lit-rlhf from-trl options.yaml --task {named[0].removesuffix('Config').lower()}`"
                if named
                else ""
            )
            raise ConfigurationError(f"{self.path}: it makes none of {', '.join(TASKS)}{way_out}.")
        if len(made) > 1:
            self.unread[found[0]] = (
                f"It makes {len(made)}; read was that of line {made[-1][1].lineno}. Look at what the others say."
            )
        return made[-1]

    def read_call(self, call: ast.Call, name: str) -> None:
        """A call of another function or class."""
        self.data.read(call)
        adapts = name == "get_peft_model" and any(each.arg == "r" for each in call.keywords)
        if name == "LoraConfig" or adapts:
            if self.options.get("use_peft"):
                self.unread[name] = "There are several: the options of the last were read."
            self.options["use_peft"] = True
            self.take(call, _PEFT)
            for each, value in _AS_HERE.items():
                if self.options.get(each) == value:
                    del self.options[each]
            self.set_later([call], _PEFT)
        elif name == "BitsAndBytesConfig":
            self.take(call, {})
        elif name == "ModelConfig":
            self.take(call, ALIASES)
        elif name == "from_pretrained":
            others = ["Tokenizer", "Config", "Processor", "Peft", "RewardModel"]
            others += [] if self.task == "RewardConfig" else ["SequenceClassification"]
            if not any(each in ast.unparse(call.func) for each in others):
                self.models.append(call)

    def take(self, call: ast.Call, names: dict[str, str]) -> None:
        """The keyword arguments of a call."""
        for keyword in call.keywords:
            if keyword.arg is None and isinstance(
                more := self.names.value(keyword.value), ast.Dict
            ):
                for key, value in zip(more.keys, more.values, strict=True):
                    each = ast.literal_eval(key) if isinstance(key, ast.Constant) else "**"
                    self.put(names.get(each, each), value)
                continue
            name = names.get(keyword.arg or "**", keyword.arg or "**")
            self.put(name, keyword.value)
        if call.args and called(call) != "get_peft_model":
            self.unread[ast.unparse(call)[:60]] = "Arguments without a name aren't read."

    def put(self, name: str, node: ast.AST) -> None:
        """One option."""
        self.options.pop(name, None)
        try:
            self.options[name] = self.names.literal(node)
        except (ValueError, TypeError):
            self.unread[name] = f"`{ast.unparse(node)[:60]}` is no literal: set it yourself."

    def set_later(self, calls: list[ast.Call], names: dict[str, str] = ALIASES) -> None:
        """Options that are set once the object is there, as in `config.max_steps = 5`."""
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.Assign | ast.AugAssign):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if not isinstance(target, ast.Attribute):
                    continue
                if self.names.value(target.value) not in calls:
                    continue
                name = names.get(target.attr, target.attr)
                if isinstance(node, ast.Assign) and self.names.is_certain(node):
                    self.unread.pop(name, None)
                    self.put(name, node.value)
                else:
                    self.unread[name] = (
                        f"`{ast.unparse(node)[:60]}` sets it under a condition: look at it yourself."
                    )

    # -- models

    def loading(self, node: ast.AST) -> ast.Call | None:
        """The call that loads a model, where a name stands for one."""
        found = self.names.value(node)
        known = isinstance(found, ast.Call) and called(found) == "from_pretrained"
        return found if known and isinstance(found, ast.Call) else None

    def name_in(self, call: ast.Call) -> ast.AST | None:
        """What a call that loads a model says of which."""
        named = [each.value for each in call.keywords if each.arg in _NAMED]
        return next(iter([*call.args, *named]), None)

    def model(self, call: ast.Call) -> None:
        """The policy's weights, where the trainer is given a loaded model."""
        if (named := self.name_in(call)) is not None:
            self.put("model_name_or_path", named)
        for keyword in call.keywords:
            if keyword.arg in _MODEL:
                self.put(_MODEL[keyword.arg], keyword.value)
            elif keyword.arg not in _UNREAD_OF_MODEL:
                self.unread[f"from_pretrained, {keyword.arg}"] = (
                    "`model.backbone` may have an option for it."
                )

    def policy(self) -> None:
        """The model where the trainer doesn't show it, and whether what stands beside it is of the same."""
        known = {"model_name_or_path", "sft_model_path"}
        names = {ast.unparse(found) for each in self.models if (found := self.name_in(each))}
        if not known & (self.options.keys() | self.unread.keys()):
            if len(names) == 1:
                self.model(self.models[0])
            elif names:
                self.unread["model_name_or_path"] = (
                    f"It loads several models ({', '.join(sorted(names))}): set `model.backbone.name` and "
                    "`data.tokenizer`."
                )
        policy = self.options.get("model_name_or_path") or self.options.get("sft_model_path")
        for part, node in self.beside.items():
            call = self.loading(node)
            named = self.name_in(call) if call is not None else node
            if policy and named is not None and self.names.is_literal(named):
                other = self.names.literal(named)
                if isinstance(other, str) and other != policy:
                    self.unread[f"{part}: {other}"] = (
                        "The reference is the model that training starts from."
                        if part == "ref_model"
                        else "Set `data.tokenizer`."
                    )

    # -- the trainer

    def trainer(self, call: ast.Call) -> None:
        """The model, rewards, and options that older trainers take themselves."""
        groups = self.task in ("GRPOConfig", "RLOOConfig")
        order = ["model", "reward_funcs"] if groups else ["model"]
        order = [] if self.task == "PPOConfig" else order
        given: dict[str, ast.expr] = dict(zip(order, call.args, strict=False))
        if len(call.args) > len(order):
            self.unread[f"{called(call)}(...)"] = "Further arguments without a name aren't read."
        given |= {keyword.arg or "**": keyword.value for keyword in call.keywords}
        for name, node in given.items():
            self.argument(name, node)

    def argument(self, name: str, node: ast.expr) -> None:
        """An argument of the trainer."""
        older = ALIASES.get(name, name)
        if name in ("model", "reward_model"):
            self.given_model(name, node)
        elif name == "reward_funcs":
            listed = self.names.value(node)
            each = listed.elts if isinstance(listed, ast.List | ast.Tuple) else [node]
            self.options[name] = [self.reward(*numbered) for numbered in enumerate(each, 1)]
        elif name in ("ref_model", "processing_class", "tokenizer"):
            self.beside[name] = node
        elif option(self.task, older) is not None:
            self.put(older, node)
        elif name == "peft_config" and not self.options.get("use_peft"):
            if ast.unparse(node) != "None":
                self.unread[name] = "No `LoraConfig` makes it: set `model.backbone.lora`."
        elif name not in _READ_ELSEWHERE:
            self.unread[f"{name}, of the trainer"] = (
                "It isn't read. If it changes the result, find its counterpart."
            )

    def given_model(self, name: str, node: ast.expr) -> None:
        """The policy or PPO's reward model, by name or as it was loaded."""
        if name == "model" and "sft_model_path" in self.options:  # which it is loaded from
            return
        loads = self.loading(node)
        named = node if loads is None else self.name_in(loads)
        if name == "model" and loads is not None:
            self.model(loads)
        elif named is not None and self.names.is_literal(named):
            self.put("model_name_or_path" if name == "model" else "reward_model_path", named)

    def reward(self, number: int, node: ast.AST) -> str:
        """A model's name; `file.py:name` of what the script defines, `package.name` of a function of another."""
        loads = self.loading(node)
        if loads is not None and (named := self.name_in(loads)) is not None:
            node = named
        if self.names.is_literal(node):
            return str(self.names.literal(node))
        name = ast.unparse(node)
        for each in ast.walk(self.tree):
            if isinstance(each, ast.ImportFrom):
                for alias in each.names:
                    if (alias.asname or alias.name) == name:
                        return f"{each.module}.{alias.name}"
        callable_ = isinstance(self.names.value(node), ast.Name | ast.Lambda | ast.Call)
        if not (callable_ and any(name in defines(each) for each in self.tree.body)):
            self.unread[f"reward_funcs: {name[:60]}"] = (
                "It has no name at the top of the script: set `model.reward` yourself."
            )
            return f"{_MISSING_REWARD}:reward_{number}"
        if self.rewards is None:
            self.unread[f"reward_funcs: {name}"] = (
                f'Loading it runs {self.path.name}: keep the training under `if __name__ == "__main__":`. With '
                "--output it is written into a file of its own."
            )
            return f"{self.path}:{name}"
        self.moved.append(name)
        return f"{self.rewards}:{name}"
