"""One DataModule for each kind of data."""

from typing import Any, ClassVar, get_args

from lit_rlhf.data.collate import (
    BranchedCollator,
    DemonstrationCollator,
    DemonstrationRowsCollator,
    Layout,
    PairRowsCollator,
    PreferenceCollator,
    ProcessCollator,
    PromptCollator,
    RankedCollator,
    UnpairedCollator,
)
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
from lit_rlhf.options import check_option


class LayoutDataModule(BranchedDataModule):
    """Base of the kinds of data whose batches other people's models can have as the rows that they know.

    Args:
        *args: As for `BranchedDataModule`.
        layout: `rows` gives `input_ids`, `attention_mask` and `labels`, -100 on the prompt; of pairs
            `chosen_input_ids`, `chosen_attention_mask`, `chosen_labels`, and the same for `rejected`.
        **kwargs: As for `BranchedDataModule`.
    """

    rows_collator_class: ClassVar[type[BranchedCollator]]

    def __init__(self, *args: Any, layout: Layout = "branched", **kwargs: Any) -> None:
        self.layout = layout
        super().__init__(*args, **kwargs)

    def collator(self) -> BranchedCollator:
        """Makes batches of the layout."""
        usual = super().collator()
        return self.rows_collator_class(**vars(usual)) if self.layout == "rows" else usual

    def check_options(self) -> None:
        """Refuse an unknown layout too."""
        super().check_options()
        layouts = get_args(Layout)
        allowed = f"one of {', '.join(layouts)}"
        check_option(self.layout in layouts, self, "layout", self.layout, allowed)


class PreferenceDataModule(LayoutDataModule):
    """Pairs of completions, one preferred: batches are `PreferenceBatch`es. For reward models, DPO and their kin.

    Arguments are those of `LayoutDataModule`. Where no format is set, rankings and ratings are taken too, as all their
    pairs that differ, without margins (`PairsFromRanking`).
    """

    shape: ClassVar[Shape] = Shape(
        (2, 2), fields=("margin", "p_chosen", "attributes"), unit="pairs"
    )
    canonical_format: ClassVar[Format] = ExplicitPrompt()
    takes: ClassVar[Takes] = {"pairs": None, "rankings": PairsFromRanking}
    collator_class: ClassVar[type[BranchedCollator]] = PreferenceCollator
    rows_collator_class: ClassVar[type[BranchedCollator]] = PairRowsCollator


class DemonstrationDataModule(LayoutDataModule):
    """Answers to imitate: batches are `DemonstrationBatch`es. For supervised fine-tuning.

    Arguments are those of `LayoutDataModule`. Of pairs, the preferred answers are imitated with the format `ChosenOf`.
    """

    shape: ClassVar[Shape] = Shape((1, 1), unit="demonstrations")
    canonical_format: ClassVar[Format] = Demonstration()
    takes: ClassVar[Takes] = {"demonstrations": None, "text": None}
    collator_class: ClassVar[type[BranchedCollator]] = DemonstrationCollator
    rows_collator_class: ClassVar[type[BranchedCollator]] = DemonstrationRowsCollator


class PromptDataModule(BranchedDataModule):
    """Prompts to roll out from: batches are `PromptBatch`es, each one iteration of a policy module.

    Arguments are those of `BranchedDataModule`. Where no format is set, the prompts of other data are taken
    too. There are no completions, so `max_completion_length` is refused: the length of a rollout is the policy
    module's.

    Raises:
        ConfigurationError: `max_completion_length` is set.
    """

    shape: ClassVar[Shape] = Shape((0, 0), unit="prompts")
    canonical_format: ClassVar[Format] = PromptOnly()
    takes: ClassVar[Takes] = {
        "prompts": None,
        **dict.fromkeys(("pairs", "rankings", "unpaired", "demonstrations", "steps"), PromptsOf),
    }
    default_bucket_batches: ClassVar[int] = 1
    collator_class: ClassVar[type[BranchedCollator]] = PromptCollator

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

    shape: ClassVar[Shape] = Shape((2, None), one_of=("score",), unit="rankings")
    canonical_format: ClassVar[Format] = Ranked()
    takes: ClassVar[Takes] = {"rankings": None}
    collator_class: ClassVar[type[BranchedCollator]] = RankedCollator


class UnpairedDataModule(BranchedDataModule):
    """Single completions with a label or a score: batches are `UnpairedBatch`es. For KTO and pointwise losses.

    Arguments are those of `BranchedDataModule`. Where no format is set, pairs are taken too, each as two examples
    (`UnpairedFromPairs`).
    """

    shape: ClassVar[Shape] = Shape(
        (1, 1), one_of=("label", "score"), fields=("attributes",), unit="completions"
    )
    canonical_format: ClassVar[Format] = Unpaired()
    takes: ClassVar[Takes] = {"unpaired": None, "pairs": UnpairedFromPairs}
    collator_class: ClassVar[type[BranchedCollator]] = UnpairedCollator


class ProcessDataModule(BranchedDataModule):
    """Solutions in labelled steps: batches are `ProcessBatch`es. For process reward models.

    Arguments are those of `BranchedDataModule`. With `too_long: truncate`, steps that
    don't fit whole into `max_completion_length` are left out, and the prompt is cut from the left.
    """

    shape: ClassVar[Shape] = Shape((1, None), one_of=("step_label",), unit="solutions")
    canonical_format: ClassVar[Format] = Steps()
    takes: ClassVar[Takes] = {"steps": None}
    collator_class: ClassVar[type[BranchedCollator]] = ProcessCollator


def shape_of(kind: Kind) -> Shape:
    """What the DataModule of a kind needs its records to look like."""
    shape: Shape = globals()[MODULES[kind]].shape
    return shape
