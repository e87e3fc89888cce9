"""DataModules as LightningCLI makes them: sources and formats by class path, options by name."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

import lit_rlhf.data
from lit_rlhf.data import BranchedDataModule
from lit_rlhf.testing import tiny_preferences, write_jsonl
from tests.public import public_names

KINDS = [
    name
    for name in public_names("lit_rlhf.data")
    if name.endswith("DataModule") and name != "BranchedDataModule"
]


def parse(config: dict[str, Any], tmp_path: Path) -> BranchedDataModule:
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": config}))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(LightningDataModule, "data")
    return parser.instantiate(parser.parse_args([f"--config={tmp_path / 'data.yaml'}"])).data


def test_a_module_from_yaml(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", tiny_preferences(9))
    module = parse(
        {
            "class_path": "lit_rlhf.data.PreferenceDataModule",
            "init_args": {
                "train": {
                    "class_path": "lit_rlhf.data.FileSource",
                    "init_args": {"path": str(path)},
                },
                "tokenizer": str(tiny_model_dir),
                "format": {
                    "class_path": "lit_rlhf.data.AsChat",
                    "init_args": {
                        "format": {
                            "class_path": "lit_rlhf.data.ExplicitPrompt",
                            "init_args": {"margin": None},
                        },
                        "system": "be kind",
                    },
                },
                "too_long": "truncate",
                "batch_size": 3,
            },
        },
        tmp_path,
    )
    module.prepare_data()
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    text = module.tokenizer.decode(batch["input_ids"][0][batch["branch_ids"][0] == 0])
    assert text.startswith("<|system|>be kind<|user|>how was the")
    assert text.endswith("<|assistant|>")


def test_a_mixture_from_yaml(tmp_path: Path, tiny_model_dir: Path) -> None:
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}-0.jsonl", tiny_preferences(8))
    portions = [
        {"path": f"{tmp_path}/a-*.jsonl", "weight": 2},
        {
            "source": {"class_path": "FileSource", "init_args": {"path": f"{tmp_path}/b-0.jsonl"}},
            "weight": 1,
            "max_rows": 6,
            "format": {"class_path": "lit_rlhf.data.ExplicitPrompt"},
        },
    ]
    mixture = {"class_path": "lit_rlhf.data.Mixture", "init_args": {"portions": portions}}
    init = {"train": mixture, "tokenizer": str(tiny_model_dir), "batch_size": 4}
    module = parse(
        {"class_path": "lit_rlhf.data.PreferenceDataModule", "init_args": init}, tmp_path
    )
    module.prepare_data()
    module.setup("fit")
    assert module.rows["train"].sizes == [8, 6]
    assert sum(len(batch["index"]) for batch in module.train_dataloader()) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_help_explains_every_option(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(lit_rlhf.data, kind), "data")
    text = parser.format_help()
    for option, words in (
        ("--data.train", "Rows to train on"),
        ("--data.val_fraction", "the share of the training prompts"),
        ("--data.too_long {drop,truncate,truncate_prompt,error}", "Rows over a limit"),
        ("--data.tokenizer", "Directory or hub id of the model's tokenizer"),
    ):
        assert option in text
        assert words in " ".join(text.split())


def test_a_typo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="max_promt_length"):
        parse(
            {
                "class_path": "lit_rlhf.data.PromptDataModule",
                "init_args": {
                    "train": {
                        "class_path": "lit_rlhf.data.FileSource",
                        "init_args": {"path": "x.jsonl"},
                    },
                    "tokenizer": "x",
                    "max_promt_length": 5,
                },
            },
            tmp_path,
        )
