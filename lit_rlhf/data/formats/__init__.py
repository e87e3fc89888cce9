"""Formats: how a raw row becomes canonical records.

A format of your own is a subclass with one method:

    class Ratings(Format):
        def __call__(self, row):
            good, bad = sorted(row["answers"], key=lambda answer: -answer["stars"])[:2]
            return [Record(prompt=row["question"], completions=(good["text"], bad["text"]))]

Column values are plain text or messages (`[{"role": "user", "content": "..."}]`, or ShareGPT's `from` and `value`) and
each format takes both; messages are rendered with the tokenizer's chat template.
"""

from lit_rlhf.data.conversion import (
    Columns as Columns,
    Format as Format,
    check_columns as check_columns,
    group_rows as group_rows,
)
from lit_rlhf.data.formats.answers import (
    Alpaca as Alpaca,
    Conversation as Conversation,
    Demonstration as Demonstration,
    HelpSteer2Ratings as HelpSteer2Ratings,
    PlainText as PlainText,
    PromptOnly as PromptOnly,
    Unpaired as Unpaired,
)
from lit_rlhf.data.formats.pairs import (
    TRANSCRIPT_MARKER as TRANSCRIPT_MARKER,
    TRANSCRIPT_QUESTION as TRANSCRIPT_QUESTION,
    TURN_COLUMNS as TURN_COLUMNS,
    ExplicitPrompt as ExplicitPrompt,
    ImplicitPrompt as ImplicitPrompt,
    PreferenceLabel as PreferenceLabel,
    PreferenceStrength as PreferenceStrength,
    SharedPrefix as SharedPrefix,
    SummaryComparison as SummaryComparison,
)
from lit_rlhf.data.formats.rankings import (
    AnswerSets as AnswerSets,
    ConversationTree as ConversationTree,
    ConversationTreeRows as ConversationTreeRows,
    HelpSteer2Pairs as HelpSteer2Pairs,
    Ranked as Ranked,
    RankedAnswers as RankedAnswers,
    RatedAnswers as RatedAnswers,
)
from lit_rlhf.data.formats.steps import (
    PRM800K as PRM800K,
    MathShepherd as MathShepherd,
    Steps as Steps,
)
from lit_rlhf.data.records import (
    carried_columns as carried_columns,
    check_completion as check_completion,
    read_completion as read_completion,
    read_prompt as read_prompt,
)
