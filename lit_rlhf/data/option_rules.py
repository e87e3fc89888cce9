"""What each option of a DataModule may be."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, get_args

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.conversion import Source
from lit_rlhf.data.encoding import LengthPolicy, PromptCut
from lit_rlhf.data.formats import Format
from lit_rlhf.data.preparation import InvalidPolicy
from lit_rlhf.data.prepared import sources_of, weights_of
from lit_rlhf.data.repeats import Repeats
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.options import either, is_number, is_text, is_whole

_Rule: TypeAlias = tuple[Callable[[Any], bool], str]
_SOURCE: _Rule = (
    lambda v: v is None or isinstance(v, Source),
    "a Source (of a file FileSource(path), of rows in Python RowsSource(rows), of the hub HubSource(name)) or left out",
)
_COUNT: _Rule = (lambda v: is_whole(v, 1), "a whole number of 1 or more")
_LIMIT: _Rule = (lambda v: v is None or is_whole(v, 1), "a whole number of 1 or more, or left out")
_SEED: _Rule = (is_whole, "a whole number")
_YES_OR_NO: _Rule = (lambda v: isinstance(v, bool), "true or false")


def _one_of(choice: Any) -> _Rule:
    values = get_args(choice)
    return lambda v: v in values, either(values)


OPTION_RULES: dict[str, _Rule] = {
    "train": _SOURCE,
    "val": _SOURCE,
    "test": _SOURCE,
    "tokenizer": (
        lambda v: is_text(v) or isinstance(v, PreTrainedTokenizerBase),
        "a directory, a hub id or a tokenizer",
    ),
    "tokenizer_revision": (lambda v: v is None or is_text(v), "text or left out"),
    "trust_remote_code": _YES_OR_NO,
    "format": (lambda v: isinstance(v, Format), "a Format or left out"),
    "val_fraction": (lambda v: is_number(v) and 0 <= v < 1, "at least 0 and below 1"),
    "split_seed": _SEED,
    "max_prompt_length": _LIMIT,
    "max_completion_length": _LIMIT,
    "too_long": _one_of(LengthPolicy),
    "cut_prompt": _one_of(PromptCut),
    "invalid": _one_of(InvalidPolicy),
    "max_invalid": (lambda v: is_number(v) and 0 <= v <= 1, "from 0 to 1"),
    "repeats": (lambda v: v is None or isinstance(v, Repeats), "a Repeats or left out"),
    "batch_size": _COUNT,
    "eval_batch_size": _LIMIT,
    "bucket_batches": _COUNT,
    "drop_last": _YES_OR_NO,
    "pad_to_multiple_of": _COUNT,
    "num_workers": (lambda v: is_whole(v, 0), "a whole number of 0 or more"),
    "seed": _SEED,
    "cache_dir": (
        lambda v: v is None or is_text(v) or isinstance(v, Path),
        "a directory or left out",
    ),
}
"""Of each option, whether a value is in its range, and the range in words."""


def check_sources(sources: Mapping[str, Source | None], val_fraction: float) -> None:
    """Refuse a DataModule without data, and a split of nothing or beside validation data.

    Raises:
        ConfigurationError: There is no source, or `val_fraction` contradicts those there are.
    """
    if not any(source is not None for source in sources.values()):
        raise ConfigurationError(
            "No data: set at least one of the data options `train`, `val` and `test`."
        )
    for name in ("val", "test"):
        if weights_of(sources[name]) is not None:
            raise ConfigurationError(
                f"The data option `{name}` is a Mixture with weights, which say how often rows are trained on; "
                "evaluation has every row once. Leave the weights out there."
            )
    if val_fraction > 0 and (sources["val"] is not None or sources["train"] is None):
        raise ConfigurationError(
            f"val_fraction is {val_fraction}, which splits `train` where `val` is not set; `train` is "
            f"{sources['train']}, `val` is {sources['val']}. Leave out val_fraction, or mend these."
        )


def refuse_formats(sources: Mapping[str, Source | None], module: str) -> None:
    """Refuse formats of portions, where a DataModule reads rows by a method of its own.

    Args:
        sources: By name.
        module: What messages call the DataModule.

    Raises:
        ConfigurationError: A portion has one.
    """
    for source in sources.values():
        if source is not None and any(given for _, given in sources_of(source)):
            raise ConfigurationError(
                f"{source} has a portion with a `format`, and {module} reads rows by its own `records`: leave the "
                "format out."
            )
