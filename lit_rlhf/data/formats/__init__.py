"""Formats: how a raw row becomes canonical records.

A format of your own is a subclass with one method:

    class Ratings(Format):
        def __call__(self, row):
            good, bad = sorted(row["answers"], key=lambda answer: -answer["stars"])[:2]
            return [Record(prompt=row["question"], completions=(good["text"], bad["text"]))]

Column values are plain text or messages (`[{"role": "user", "content": "..."}]`, or ShareGPT's `from` and `value`) and
each format takes both; messages are rendered with the tokenizer's chat template.
"""

from lit_rlhf.data.formats.answers import Alpaca as Alpaca
from lit_rlhf.data.formats.answers import Conversation as Conversation
from lit_rlhf.data.formats.answers import Demonstration as Demonstration
from lit_rlhf.data.formats.answers import HelpSteer2Ratings as HelpSteer2Ratings
from lit_rlhf.data.formats.answers import PlainText as PlainText
from lit_rlhf.data.formats.answers import PromptOnly as PromptOnly
from lit_rlhf.data.formats.answers import Unpaired as Unpaired
from lit_rlhf.data.formats.base import Columns as Columns
from lit_rlhf.data.formats.base import Format as Format
from lit_rlhf.data.formats.base import check_completion as check_completion
from lit_rlhf.data.formats.base import read_completion as read_completion
from lit_rlhf.data.formats.base import read_prompt as read_prompt
from lit_rlhf.data.formats.comparisons import PreferenceLabel as PreferenceLabel
from lit_rlhf.data.formats.comparisons import PreferenceStrength as PreferenceStrength
from lit_rlhf.data.formats.comparisons import SummaryComparison as SummaryComparison
from lit_rlhf.data.formats.pairs import TRANSCRIPT_MARKER as TRANSCRIPT_MARKER
from lit_rlhf.data.formats.pairs import TRANSCRIPT_QUESTION as TRANSCRIPT_QUESTION
from lit_rlhf.data.formats.pairs import ExplicitPrompt as ExplicitPrompt
from lit_rlhf.data.formats.pairs import ImplicitPrompt as ImplicitPrompt
from lit_rlhf.data.formats.pairs import SharedPrefix as SharedPrefix
from lit_rlhf.data.formats.rankings import ConversationTree as ConversationTree
from lit_rlhf.data.formats.rankings import Ranked as Ranked
from lit_rlhf.data.formats.rankings import RankedAnswers as RankedAnswers
from lit_rlhf.data.formats.rankings import RatedAnswers as RatedAnswers
from lit_rlhf.data.formats.steps import PRM800K as PRM800K
from lit_rlhf.data.formats.steps import MathShepherd as MathShepherd
from lit_rlhf.data.formats.steps import Steps as Steps
