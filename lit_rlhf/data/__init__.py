"""Data: sources, formats, and a DataModule per kind of data. Usable under any trainer; no policy code comes with it.

A row's way: a `Source` reads it, a `Format` turns it into `Record`s, an `Encoder` tokenizes them, the cache keeps the
tokens, a sampler orders them, a collator pads them to a branched batch (`lit_rlhf.types`).
"""

from lit_rlhf.data.arithmetic import ArithmeticSource as ArithmeticSource
from lit_rlhf.data.conversion import Source as Source
from lit_rlhf.data.datamodule import BranchedDataModule as BranchedDataModule
from lit_rlhf.data.finding import Auto as Auto
from lit_rlhf.data.formats import (
    PRM800K as PRM800K,
    Alpaca as Alpaca,
    AnswerSets as AnswerSets,
    Conversation as Conversation,
    ConversationTree as ConversationTree,
    ConversationTreeRows as ConversationTreeRows,
    Demonstration as Demonstration,
    ExplicitPrompt as ExplicitPrompt,
    Format as Format,
    HelpSteer2Pairs as HelpSteer2Pairs,
    HelpSteer2Ratings as HelpSteer2Ratings,
    ImplicitPrompt as ImplicitPrompt,
    MathShepherd as MathShepherd,
    PlainText as PlainText,
    PreferenceLabel as PreferenceLabel,
    PreferenceStrength as PreferenceStrength,
    PromptOnly as PromptOnly,
    Ranked as Ranked,
    RankedAnswers as RankedAnswers,
    RatedAnswers as RatedAnswers,
    SharedPrefix as SharedPrefix,
    Steps as Steps,
    SummaryComparison as SummaryComparison,
    Unpaired as Unpaired,
)
from lit_rlhf.data.kinds import (
    DemonstrationDataModule as DemonstrationDataModule,
    PreferenceDataModule as PreferenceDataModule,
    ProcessDataModule as ProcessDataModule,
    PromptDataModule as PromptDataModule,
    RankedDataModule as RankedDataModule,
    UnpairedDataModule as UnpairedDataModule,
)
from lit_rlhf.data.mixture import Mixture as Mixture, Portion as Portion
from lit_rlhf.data.prompt_text import PromptTextDataModule as PromptTextDataModule
from lit_rlhf.data.readers import FileSource as FileSource
from lit_rlhf.data.records import InvalidRowError as InvalidRowError, Record as Record
from lit_rlhf.data.repeats import Repeats as Repeats
from lit_rlhf.data.sources import (
    DirectorySource as DirectorySource,
    HubSource as HubSource,
    RowsSource as RowsSource,
)
from lit_rlhf.data.wrappers import (
    AsChat as AsChat,
    AsTranscript as AsTranscript,
    ChosenOf as ChosenOf,
    PairsFromRanking as PairsFromRanking,
    PromptsOf as PromptsOf,
    UnpairedFromPairs as UnpairedFromPairs,
)
