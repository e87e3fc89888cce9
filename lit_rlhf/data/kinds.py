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
from lit_rlhf.tokenizers import pad_token_id


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

    shape: ClassVar[Shape] = Shape(
        (2, 2), fields=("margin", "p_chosen", "attributes"), unit="pairs"
    )
    canonical_format: ClassVar[Format] = ExplicitPrompt()
    takes: ClassVar[Takes] = {"pairs": None, "rankings": PairsFromRanking}

    def __init__(self, *args: Any, layout: Layout = "branched", **kwargs: Any) -> None:
        self.layout = layout
        super().__init__(*args, **kwargs)

    def collator(self) -> BranchedCollator:
        """Makes `PreferenceBatch`es."""
        kind = PairRowsCollator if self.layout == "rows" else PreferenceCollator
        return kind(pad_token_id(self.tokenizer), self.pad_to_multiple_of)

    def check_options(self) -> None:
        """Refuse an unknown layout too."""
        super().check_options()
        _check_layout(self)


class DemonstrationDataModule(BranchedDataModule):
    """Answers to imitate: batches are `DemonstrationBatch`es. For supervised fine-tuning.

    Of pairs, the preferred answers are imitated with the format `ChosenOf`.

    Args:
        *args: As for `BranchedDataModule`.
        layout: `rows` gives other people's models the rows that they know: `input_ids`, `attention_mask` and `labels`,
            -100 on the prompt.
        **kwargs: As for `BranchedDataModule`.
    """

    shape: ClassVar[Shape] = Shape((1, 1), unit="demonstrations")
    canonical_format: ClassVar[Format] = Demonstration()
    takes: ClassVar[Takes] = {"demonstrations": None, "text": None}

    def __init__(self, *args: Any, layout: Layout = "branched", **kwargs: Any) -> None:
        self.layout = layout
        super().__init__(*args, **kwargs)

    def collator(self) -> BranchedCollator:
        """Makes `DemonstrationBatch`es."""
        kind = DemonstrationRowsCollator if self.layout == "rows" else DemonstrationCollator
        return kind(pad_token_id(self.tokenizer), self.pad_to_multiple_of)

    def check_options(self) -> None:
        """Refuse an unknown layout too."""
        super().check_options()
        _check_layout(self)


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

    def collator(self) -> BranchedCollator:
        """Makes `PromptBatch`es."""
        return PromptCollator(pad_token_id(self.tokenizer), self.pad_to_multiple_of)

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

    def collator(self) -> BranchedCollator:
        """Makes `RankedBatch`es."""
        return RankedCollator(pad_token_id(self.tokenizer), self.pad_to_multiple_of)


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

    def collator(self) -> BranchedCollator:
        """Makes `UnpairedBatch`es."""
        return UnpairedCollator(pad_token_id(self.tokenizer), self.pad_to_multiple_of)


class ProcessDataModule(BranchedDataModule):
    """Solutions in labelled steps: batches are `ProcessBatch`es. For process reward models.

    Arguments are those of `BranchedDataModule`. With `too_long: truncate`, steps that
    don't fit whole into `max_completion_length` are left out, and the prompt is cut from the left.
    """

    shape: ClassVar[Shape] = Shape((1, None), one_of=("step_label",), unit="solutions")
    canonical_format: ClassVar[Format] = Steps()
    takes: ClassVar[Takes] = {"steps": None}

    def collator(self) -> BranchedCollator:
        """Makes `ProcessBatch`es."""
        return ProcessCollator(pad_token_id(self.tokenizer), self.pad_to_multiple_of)


def _check_layout(module: PreferenceDataModule | DemonstrationDataModule) -> None:
    layouts = get_args(Layout)
    valid = module.layout in layouts
    check_option(valid, module, "layout", module.layout, f"one of {', '.join(layouts)}")


def shape_of(kind: Kind) -> Shape:
    """What the DataModule of a kind needs its records to look like."""
    shape: Shape = globals()[MODULES[kind]].shape
    return shape
