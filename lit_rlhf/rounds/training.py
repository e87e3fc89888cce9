"""A training within a round: a run of `lit-rlhf fit` with the round's model and data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.options import check_option, is_text
from lit_rlhf.rounds.steps import Options, Round, Step, merged


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
        known = self.data in ("round", "all")
        check_option(known, self, "data", self.data, "round or all")

    def step(
        self,
        planned: Round,
        name: str,
        data: Sequence[Path],
        more: Mapping[str, Any] | None = None,
    ) -> Step:
        """The step of a round that trains.

        Args:
            planned: The round.
            name: Of the run's directory.
            data: Files that it is trained on.
            more: Options that the method sets.
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
        return Step(name, ("fit",), run / "export", options, tuple(self.configs), run)


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


def _backbone(start: str) -> dict[str, Any]:
    """The model to start from; of an adapter, with its base under it."""
    config = Path(start) / "adapter_config.json"
    if not config.is_file():
        return {"name": start}
    base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    return {"name": base, "tokenizer": start, "adapter": start}
