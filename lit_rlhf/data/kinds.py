"""One DataModule for each kind of data."""

from typing import Any, ClassVar

from lit_rlhf.data import collate
from lit_rlhf.data.collate import Collators, Layout
from lit_rlhf.data.conversion import Shape
from lit_rlhf.data.datamodule import BranchedDataModule
from lit_rlhf.data.finding import Takes
from lit_rlhf.data.formats import (
    Demonstration,
    ExplicitPrompt,
    Format,
    PromptOnly,
    Ranked,
    Steps,
    Unpaired,
)
from lit_rlhf.data.recognition import MODULES, Kind
from lit_rlhf.data.wrappers import PairsFromRanking, PromptsOf, UnpairedFromPairs
from lit_rlhf.errors import ConfigurationError


class PreferenceDataModule(BranchedDataModule):
    """Pairs of completions, one preferred: batches are `PreferenceBatch`es. For reward models, DPO and their kin.

    Where no format is set, rankings and ratings are taken too, as all their pairs that differ, without margins
    (`PairsFromRanking`).

    Args:
        *args: As for `BranchedDataModule`.
        layout: `rows` gives other people's models the rows that they know: `chosen_input_ids`, `chosen_attention_mask`,
            `chosen_labels` (-100 on the prompt), and the same for `rejected`.
        **kwargs: As for `BranchedDataModule`.
    """

    collators: Collators = {
        "branched": collate.PreferenceCollator,
        "rows": collate.PairRowsCollator,
    }
    shape: ClassVar[Shape] = Shape(
        (2, 2), fields=("margin", "p_chosen", "attributes"), unit="pairs"
    )
    canonical_format: ClassVar[Format] = ExplicitPrompt()
    takes: ClassVar[Takes] = {"pairs": None, "rankings": PairsFromRanking}

    def __init__(self, *args: Any, layout: Layout = "branched", **kwargs: Any) -> None:
        self.layout = layout
        super().__init__(*args, **kwargs)


class DemonstrationDataModule(BranchedDataModule):
    """Answers to imitate: batches are `DemonstrationBatch`es. For supervised fine-tuning.

    Of pairs, the preferred answers are imitated with the format `ChosenOf`.

    Args:
        *args: As for `BranchedDataModule`.
        layout: `rows` gives other people's models the rows that they know: `input_ids`, `attention_mask` and `labels`,
            -100 on the prompt.
        **kwargs: As for `BranchedDataModule`.
    """

    collators: Collators = {
        "branched": collate.DemonstrationCollator,
        "rows": collate.DemonstrationRowsCollator,
    }
    shape: ClassVar[Shape] = Shape((1, 1), unit="demonstrations")
    canonical_format: ClassVar[Format] = Demonstration()
    takes: ClassVar[Takes] = {"demonstrations": None, "text": None}

    def __init__(self, *args: Any, layout: Layout = "branched", **kwargs: Any) -> None:
        self.layout = layout
        super().__init__(*args, **kwargs)


class PromptDataModule(BranchedDataModule):
    """Prompts to roll out from: batches are `PromptBatch`es, each one iteration of a policy module.

    Arguments are those of `BranchedDataModule`. Where no format is set, the prompts of other data are taken
    too. There are no completions, so `max_completion_length` is refused: the length of a rollout is the policy
    module's.

    Raises:
        ConfigurationError: `max_completion_length` is set.
    """

    collators: Collators = {"branched": collate.PromptCollator}
    shape: ClassVar[Shape] = Shape((0, 0), unit="prompts")
    canonical_format: ClassVar[Format] = PromptOnly()
    takes: ClassVar[Takes] = {
        "prompts": None,
        **dict.fromkeys(("pairs", "rankings", "unpaired", "demonstrations", "steps"), PromptsOf),
    }
    default_bucket_batches: ClassVar[int] = 1

    def check_options(self) -> None:
        """Refuse a length of completions too."""
        super().check_options()
        if self.max_completion_length is not None:
            raise ConfigurationError(
                f"max_completion_length is {self.max_completion_length}, but prompts have no completions. Leave it "
                "out; the length of a rollout is set in the module (sampling.max_new_tokens)."
            )


class RankedDataModule(BranchedDataModule):
    """Two or more completions of a prompt with scores: batches are `RankedBatch`es. For listwise losses.

    Arguments are those of `BranchedDataModule`. As pairs, for pairwise losses, rankings
    are read by `PreferenceDataModule` with the format `PairsFromRanking(Ranked())`.
    """

    collators: Collators = {"branched": collate.RankedCollator}
    shape: ClassVar[Shape] = Shape((2, None), one_of=("score",), unit="rankings")
    canonical_format: ClassVar[Format] = Ranked()
    takes: ClassVar[Takes] = {"rankings": None}


class UnpairedDataModule(BranchedDataModule):
    """Single completions with a label or a score: batches are `UnpairedBatch`es. For KTO and pointwise losses.

    Arguments are those of `BranchedDataModule`. Where no format is set, pairs are taken too, each as two examples
    (`UnpairedFromPairs`).
    """

    collators: Collators = {"branched": collate.UnpairedCollator}
    shape: ClassVar[Shape] = Shape(
        (1, 1), one_of=("label", "score"), fields=("attributes",), unit="completions"
    )
    canonical_format: ClassVar[Format] = Unpaired()
    takes: ClassVar[Takes] = {"unpaired": None, "pairs": UnpairedFromPairs}


class ProcessDataModule(BranchedDataModule):
    """Solutions in labelled steps: batches are `ProcessBatch`es. For process reward models.

    Arguments are those of `BranchedDataModule`. With `too_long: truncate`, steps that
    don't fit whole into `max_completion_length` are left out, and the prompt is cut from the left.
    """

    collators: Collators = {"branched": collate.ProcessCollator}
    shape: ClassVar[Shape] = Shape((1, None), one_of=("step_label",), unit="solutions")
    canonical_format: ClassVar[Format] = Steps()
    takes: ClassVar[Takes] = {"steps": None}


def shape_of(kind: Kind) -> Shape:
    """What the DataModule of a kind needs its records to look like."""
    shape: Shape = globals()[MODULES[kind]].shape
    return shape
