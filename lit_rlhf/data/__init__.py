"""Data: sources, formats, and a DataModule per kind of data. Usable under any trainer; no policy code comes with it.

A row's way: a `Source` reads it, a `Format` turns it into `Record`s, an `Encoder` tokenizes them, the cache keeps the
tokens, a sampler orders them, a collator pads them to a branched batch (`lit_rlhf.types`).
"""

from lit_rlhf.data.arithmetic import ArithmeticSource
from lit_rlhf.data.datamodule import BranchedDataModule
from lit_rlhf.data.formats import (
    PRM800K,
    Alpaca,
    Conversation,
    ConversationTree,
    Demonstration,
    ExplicitPrompt,
    Format,
    HelpSteer2Ratings,
    ImplicitPrompt,
    MathShepherd,
    PlainText,
    PreferenceLabel,
    PreferenceStrength,
    PromptOnly,
    Ranked,
    RankedAnswers,
    RatedAnswers,
    SharedPrefix,
    Steps,
    SummaryComparison,
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
from lit_rlhf.data.recognition import Auto
from lit_rlhf.data.records import InvalidRowError, Record
from lit_rlhf.data.sources import DirectorySource, FileSource, HubSource, RowsSource, Source
from lit_rlhf.data.wrappers import (
    AsChat,
    AsTranscript,
    ChosenOf,
    PairsFromRanking,
    PromptsOf,
    UnpairedFromPairs,
)

__all__ = [
    "PRM800K",
    "Alpaca",
    "ArithmeticSource",
    "AsChat",
    "AsTranscript",
    "Auto",
    "BranchedDataModule",
    "ChosenOf",
    "Conversation",
    "ConversationTree",
    "Demonstration",
    "DemonstrationDataModule",
    "DirectorySource",
    "ExplicitPrompt",
    "FileSource",
    "Format",
    "HelpSteer2Ratings",
    "HubSource",
    "ImplicitPrompt",
    "InvalidRowError",
    "MathShepherd",
    "PairsFromRanking",
    "PlainText",
    "PreferenceDataModule",
    "PreferenceLabel",
    "PreferenceStrength",
    "ProcessDataModule",
    "PromptDataModule",
    "PromptOnly",
    "PromptTextDataModule",
    "PromptsOf",
    "Ranked",
    "RankedAnswers",
    "RankedDataModule",
    "RatedAnswers",
    "Record",
    "RowsSource",
    "SharedPrefix",
    "Source",
    "Steps",
    "SummaryComparison",
    "Unpaired",
    "UnpairedDataModule",
    "UnpairedFromPairs",
]
