"""Data: sources, formats, and a DataModule per kind of data. Usable under any trainer; no policy code comes with it.

A row's way: a `Source` reads it, a `Format` turns it into `Record`s, an `Encoder` tokenizes them, the cache keeps the
tokens, a sampler orders them, a collator pads them to a branched batch (`lit_rlhf.types`).
"""

from lit_rlhf.data.arithmetic import ArithmeticSource
from lit_rlhf.data.datamodule import BranchedDataModule
from lit_rlhf.data.formats import (
    Conversation,
    Demonstration,
    ExplicitPrompt,
    Format,
    ImplicitPrompt,
    PlainText,
    PromptOnly,
    Ranked,
    Steps,
    Unpaired,
)
from lit_rlhf.data.kinds import (
    DemonstrationDataModule,
    PreferenceDataModule,
    ProcessDataModule,
    PromptDataModule,
    RankedDataModule,
    UnpairedDataModule,
)
from lit_rlhf.data.prompt_text import PromptTextDataModule
from lit_rlhf.data.records import InvalidRowError, Record
from lit_rlhf.data.sources import DirectorySource, FileSource, HubSource, RowsSource, Source
from lit_rlhf.data.wrappers import (
    AsChat,
    ChosenOf,
    PairsFromRanking,
    PromptsOf,
    UnpairedFromPairs,
)

__all__ = [
    "ArithmeticSource",
    "AsChat",
    "BranchedDataModule",
    "ChosenOf",
    "Conversation",
    "Demonstration",
    "DemonstrationDataModule",
    "DirectorySource",
    "ExplicitPrompt",
    "FileSource",
    "Format",
    "HubSource",
    "ImplicitPrompt",
    "InvalidRowError",
    "PairsFromRanking",
    "PlainText",
    "PreferenceDataModule",
    "ProcessDataModule",
    "PromptDataModule",
    "PromptOnly",
    "PromptTextDataModule",
    "PromptsOf",
    "Ranked",
    "RankedDataModule",
    "Record",
    "RowsSource",
    "Source",
    "Steps",
    "Unpaired",
    "UnpairedDataModule",
    "UnpairedFromPairs",
]
