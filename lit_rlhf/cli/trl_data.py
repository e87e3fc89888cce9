"""The rows that a TRL script loads."""

import ast
from typing import Any, NamedTuple

from lit_rlhf.cli.trl_names import Names, called

_FILES = ("json", "csv", "parquet")
_CHANGES = {"map", "filter", "select", "take", "skip", "shard", "rename_column", "rename_columns"}
_CHANGES |= {"train_test_split"}
"""Methods of a data set after which its rows aren't those of the file."""
_ELSEWHERE = {
    "revision": "Set `data.train.revision`.",
    "data_dir": "No source here has it: fetch the files, and name one in `data.train`.",
}


class Loaded(NamedTuple):
    """Rows that `load_dataset` gives."""

    name: str  # a file, or a data set of the hub
    config: str | None
    split: str


class DataSets:
    """What `load_dataset` names, and what becomes of it.

    Attributes:
        unread: What can't be read: a name, and the sentence.
        held_out: A file, or a share of the rows, for evaluation.
    """

    def __init__(self, names: Names) -> None:
        self.names = names
        self.unread: dict[str, str] = {}
        self.held_out: str | float | None = None
        self._train: dict[Loaded, None] = {}
        self._test: dict[Loaded, None] = {}

    def read(self, call: ast.Call) -> None:
        """A call that may load or change rows."""
        name = called(call)
        if name == "load_dataset":
            self._load(call)
        elif name == "train_test_split":
            self._hold_out(call)
        elif name in _CHANGES and isinstance(call.func, ast.Attribute):
            self.unread[f"{ast.unparse(call.func)[-40:]}()"] = (
                "Rows are read as they lie in the file. If this changes what the model or the rewards see, save the "
                "changed rows (`to_json`), and name that file in `data.train`."
            )

    def options(self) -> dict[str, Any]:
        """As the options of TRL's ScriptArguments; none where the script loads several."""
        found: dict[str, Any] = {}
        (train, *others) = self._train or (None,)
        if train is not None and not others:
            found = {"dataset_name": train.name, "dataset_train_split": train.split}
            found |= {} if train.config is None else {"dataset_config": train.config}
        elif train is not None:
            apart = len({each.name for each in self._train}) == len(self._train)
            said = (each.name if apart else " ".join(filter(None, each)) for each in self._train)
            self.unread["load_dataset"] = (
                f"It loads several ({', '.join(said)}): set `data.train`, and `data.val` where one is for evaluation."
            )
        for test in self._test:
            if train is not None and (test.name, test.config) == (train.name, train.config):
                found["dataset_test_split"] = test.split
            else:
                self.unread["load_dataset, for evaluation"] = (
                    f"{test.name}, {test.split}, is another data set: set `data.val`."
                )
        return found

    def _load(self, call: ast.Call) -> None:
        """`load_dataset(name, config, split=...)`, or of files."""
        given = {k.arg: k.value for k in call.keywords if k.arg}
        given |= dict(zip(("path", "name"), call.args, strict=False))
        read = {
            name: self.names.literal(node)
            for name, node in given.items()
            if self.names.is_literal(node)
        }
        for part in {"name", "split"} & given.keys() - read.keys():
            self.unread[f"load_dataset, {part}"] = (
                f"`{ast.unparse(given[part])[:60]}` is no literal: look at `data.train`."
            )
        for part in _ELSEWHERE.keys() & given.keys():
            self.unread[f"load_dataset, {part}"] = _ELSEWHERE[part]
        files = read.get("path") in _FILES
        name = self._file(read.get("data_files")) if files else read.get("path")
        if not isinstance(name, str):
            self.unread["load_dataset"] = (
                f"`{ast.unparse(call)[:60]}` names no one file or data set: set `data.train`."
            )
            return
        splits = read.get("split") or "train"
        for split in [splits] if isinstance(splits, str) else splits:
            evaluates = any(part in split for part in ("test", "val", "eval"))
            if files and evaluates:  # a file of its own, which is held out
                continue
            if files and split != "train":
                self.unread["load_dataset, split"] = (
                    f"Files are read whole, and not {split!r} of them."
                )
            (self._test if evaluates else self._train)[Loaded(name, read.get("name"), split)] = None

    def _file(self, name: Any) -> Any:
        """The file to train on, of a path, a list of paths, or paths by split."""
        if isinstance(name, dict):
            files = [each for part, each in name.items() if part != "train"]
            if len(files) == 1 and isinstance(files[0], str):
                self.held_out = files[0]
            name = name.get("train")
        return name[0] if isinstance(name, list) and len(name) == 1 else name

    def _hold_out(self, call: ast.Call) -> None:
        """The share that isn't trained on."""
        size = [each.value for each in call.keywords if each.arg == "test_size"] + call.args[:1]
        share = self.names.literal(size[0]) if size and self.names.is_literal(size[0]) else None
        if isinstance(share, float):
            self.held_out = share
        else:
            self.unread["train_test_split()"] = (
                f"`{ast.unparse(call)[-60:]}` gives no share as `test_size`: set `data.val_fraction`, or `data.val`."
            )
