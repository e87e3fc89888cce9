"""A training within a round: a run of `lit-rlhf fit` with the round's model and data."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.options import check_choice, check_option, is_text
from lit_rlhf.rounds.steps import Options, Round, Step, merged
from lit_rlhf.seeding import stable_hash


@dataclass
class Training:
    """What `lit-rlhf fit` is given.

    The round sets `run_dir`, the model that it starts from, its tokenizer, the seeds and the training data; all else
    is that of the configurations.

    Args:
        configs: Files, or names of shipped configurations; later ones win.
        options: What differs from them, nested as in a file. `{policy}`, `{initial}` and `{round}` in a text stand for
            the policy that the round starts from, the first of all, and the round's number.
        start: "previous": what the round before came to. "initial": the policy that the first round started from, as
            if this were the first training. Or another model. What it starts from is its reference, too.
        data: "round": the data of this round. "all": those of the earlier ones too.

    Raises:
        ConfigurationError: No configuration, or an option that is none.
    """

    configs: list[str]
    options: Options = field(default_factory=dict)
    start: str = "previous"
    data: Literal["round", "all"] = "round"

    def __post_init__(self) -> None:
        """Check the options."""
        check_option(bool(self.configs), self, "configs", self.configs, "one configuration or more")
        check_option(is_text(self.start), self, "start", self.start, "previous, initial or a model")
        check_choice(self, "data", self.data, "round", "all")

    def step(
        self,
        planned: Round,
        name: str,
        data: Sequence[Path],
        more: Mapping[str, Any] | None = None,
        reads: Sequence[str] = (),
    ) -> Step:
        """The step of a round that trains.

        Args:
            planned: The round.
            name: Of the run's directory.
            data: Files that it is trained on.
            more: Options that the method sets.
            reads: As of `Step`.
        """
        starts = {"previous": planned.policy, "initial": planned.initial}
        start = starts.get(self.start, self.start)
        seed, run = planned.seed_of(name), planned.directory / name
        files = [str(path) for path in data]
        train = {
            "class_path": "FileSource",
            "init_args": {"path": files if len(files) > 1 else files[0]},
        }
        own = {
            "run_dir": str(run),
            "seed_everything": seed,
            "model": {"init_args": {"backbone": _backbone(start), "seed": seed}},
            "data": {"init_args": {"tokenizer": start, "train": train, "seed": seed}},
        }
        options = merged(merged(planned.fill(self.options), own), more or {})
        configs = tuple(self.configs)
        return Step(name, ("fit",), run / "export", options, configs, run, reads=tuple(reads))


def require_export(step: Step, config: str) -> None:
    """Refuse a training that would leave nothing where the next round looks for it.

    Args:
        step: The training.
        config: Its whole configuration, as YAML.

    Raises:
        ConfigurationError: No `ExportModel`, or one that writes elsewhere.
    """
    callbacks = yaml.safe_load(config)["trainer"]["callbacks"] or []
    exports = [each for each in callbacks if each["class_path"].endswith("ExportModel")]
    places = [each.get("init_args", {}).get("dirpath") for each in exports]
    if places != [None]:
        raise ConfigurationError(
            f"{' '.join(step.configs)}: the next step takes what the callback ExportModel writes to {step.result}, and "
            f"{'there is none' if not places else f'it has dirpath: {places[0]}'}. Put ExportModel into "
            "trainer.callbacks, without a dirpath."
        )


def contents(configs: Iterable[str]) -> Iterator[str]:
    """A line for each configuration; of files, which may be edited, with a hash of what they say."""
    for config in configs:
        path = Path(config)
        yield f"{config}, {stable_hash(_said_in(path)):016x}" if path.is_file() else config


def _said_in(path: Path) -> str:
    """The options of a file and of the files that it names, without comments."""

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: whole(each) for name, each in value.items()}
        if isinstance(value, list):
            return [whole(each) for each in value]
        part = isinstance(value, str) and value.endswith(".yaml")
        return _said_in(path.parent / value) if part and (path.parent / value).is_file() else value

    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return json.dumps(whole(yaml.safe_load(text)), default=str)
    except yaml.YAMLError:  # which the command itself says
        return text


def refuse_changes(step: Step, file: Path, text: str) -> None:
    """Refuse to go on with a training by other options than those that it was begun with.

    Raises:
        ConfigurationError: Names the file of the former options, and configurations that differ.
    """
    before = file.read_text(encoding="utf-8")
    if text.endswith(before):  # of a former release: without the configurations
        return
    lines = zip(step.configs, text.splitlines(), strict=False)
    other = [config for config, line in lines if line not in before.splitlines()]
    which = f", and {' and '.join(other)}" if other and before.startswith("# ") else ""
    raise ConfigurationError(
        f"{step.run_dir} was begun with other options than those that are given now (see {file}{which}). Put the "
        f"former ones back to finish it, or delete {step.run_dir} to train anew."
    )


def _backbone(start: str) -> dict[str, Any]:
    """The model to start from; of an adapter, with its base under it."""
    config = Path(start) / "adapter_config.json"
    if not config.is_file():
        return {"name": start}
    base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    return {"name": base, "tokenizer": start, "adapter": start}
