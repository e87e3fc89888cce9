"""The DataModule that all others are kinds of."""

import warnings
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from lit_rlhf.data import samplers
from lit_rlhf.data.collate import BranchedCollator, Collators, Layout
from lit_rlhf.data.conversion import Shape, Source
from lit_rlhf.data.encoding import LengthPolicy, PromptCut
from lit_rlhf.data.finding import Auto, FormatFinder, Takes
from lit_rlhf.data.formats import Format
from lit_rlhf.data.keys import content_key, describe_class, users_options
from lit_rlhf.data.option_rules import OPTION_RULES, check_sources, refuse_formats
from lit_rlhf.data.preparation import InvalidPolicy, Report
from lit_rlhf.data.prepared import PreparedSources, form_of_prompts, shares_of, weights_of
from lit_rlhf.data.readers import FileSource
from lit_rlhf.data.records import Record, Row
from lit_rlhf.data.repeats import Repeats
from lit_rlhf.data.rows import ReferenceLogprobs, TokenCache, TokenizedRows, cache_root
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.internals.lightning import callbacks_of, save_hyperparameters, set_hyperparameters
from lit_rlhf.options import check_option, is_plain
from lit_rlhf.prompt_form import PromptForm
from lit_rlhf.tokenizers import load_tokenizer, pad_token_id, tokenizer_fingerprint

# The source that a stage can't do without, and those it opens.
_STAGES: dict[str | None, tuple[str | None, tuple[str, ...]]] = {
    None: (None, ("train", "val", "test")),
    "fit": ("train", ("train", "val")),
    "validate": ("val", ("train", "val")),  # train: for what `val_fraction` keeps of it
    "test": ("test", ("test",)),
    "predict": ("test", ("test",)),
}


class BranchedDataModule(LightningDataModule, ABC):
    """Reads, splits, tokenizes once and batches data of one kind; works under a Trainer and without one.

    Without a Trainer:

        data.prepare_data()
        data.setup("fit")
        for batch in data.train_dataloader(): ...   # each pass is an epoch, with an order of its own

    A data set of one's own needs one method, `records`, or a `Format`:

        class Answers(PreferenceDataModule):
            def records(self, row):
                best, worst = row["answers"][0], row["answers"][-1]
                return [Record(row["question"], (best["body"], worst["body"]))]

    Args:
        train: Rows to train on, of one source or of a `Mixture`.
        val: Rows to validate on.
        test: Rows to test and to predict on.
        tokenizer: Directory or hub id of the model's tokenizer, or from Python the tokenizer.
        tokenizer_revision: Branch, tag or commit of it on the hub.
        trust_remote_code: Run code that comes with the tokenizer. Off: such tokenizers are refused.
        format: How rows become records. None: the one that reads the first rows, found for each source by itself and
            said, with a row as the model will see it. Rows that several read, or none, are refused (see `Auto`).
        val_fraction: Where `val` is None, the share of the training prompts that is kept for validation. The side is
            decided by a hash of the prompt, so a prompt never stands on both. 0 keeps none.
        split_seed: Other seeds keep other prompts. Leave it when the seed of the run changes, or validation data leak.
        max_prompt_length: Most tokens of a prompt. None: no limit.
        max_completion_length: Most tokens of a completion, EOS included. None: no limit.
        too_long: Rows over a limit are left out (drop), cut (truncate: also completions, which lose their end and EOS;
            truncate_prompt: prompts alone, and rows with a longer completion are left out), or end the run (error).
            What is left out or cut is counted.
        cut_prompt: Which end of a prompt is cut, `start` or `end`; of a conversation, the end can't be.
        invalid: Rows that can't be used (empty completion, identical pair, missing column, number out of range) are
            left out and counted (drop), or end the run (error). Counts are logged either way.
        max_invalid: The largest share of rows that `invalid: drop` may leave out; beyond it the run ends, since then
            it is more likely that the data are read wrongly. 1: any share.
        repeats: What happens to records that occur again or contradict each other: kept, left out and counted, or the
            end of the run. None: kept.
        batch_size: Prompts per batch and process.
        eval_batch_size: The same for validation, test and prediction. None: `batch_size`. Changed by a few where
            processes would else have unequal numbers of batches.
        bucket_batches: Among how many batches rows are sorted by length. More: less padding, less random batches.
            None: 50, and for prompts to roll out from 1, which is no sorting.
        drop_last: Leave out the rows that fill no batch, other ones in each epoch.
        pad_to_multiple_of: The width of a batch is rounded up to a multiple of this; 8 or 64 suit GPUs.
        num_workers: Processes that load batches. Batches don't depend on it.
        seed: Of the order of the rows.
        cache_dir: Where tokenized rows are kept. None: the environment variable LIT_RLHF_CACHE, else ~/.cache/lit_rlhf.

    Raises:
        ConfigurationError: An option out of its range, or options that contradict each other.
    """

    shape: ClassVar[Shape]
    takes: ClassVar[Takes]
    """The kinds of records that make batches, as they are or through a wrapper."""
    canonical_format: ClassVar[Format]
    """What `records` of a subclass gets from its base, and what a source without rows is read with."""
    default_format: ClassVar[Format | None] = None
    """A subclass's own format where none is set. None: it is found from the rows."""
    default_bucket_batches: ClassVar[int] = 50
    layout: Layout = "branched"

    def __init__(
        self,
        train: Source | None = None,
        val: Source | None = None,
        test: Source | None = None,
        *,
        tokenizer: str | PreTrainedTokenizerBase,
        format: Format | None = None,
        val_fraction: float = 0.0,
        split_seed: int = 0,
        max_prompt_length: int | None = None,
        max_completion_length: int | None = None,
        too_long: LengthPolicy = "drop",
        cut_prompt: PromptCut = "start",
        invalid: InvalidPolicy = "drop",
        max_invalid: float = 0.5,
        repeats: Repeats | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        bucket_batches: int | None = None,
        drop_last: bool = True,
        pad_to_multiple_of: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
        tokenizer_revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(tokenizer, Path):
            tokenizer = str(tokenizer)
        # logger: `seed` and `batch_size` are names of the module's too
        self.save_hyperparameters(logger=False)
        self._keep_plain_hyperparameters()
        self.sources = {"train": train, "val": val, "test": test}
        usual, own = self.canonical_format, type(self).records is not BranchedDataModule.records
        self.format = format or self.default_format or (usual if own else Auto())
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.max_prompt_length = max_prompt_length
        self.max_completion_length = max_completion_length
        self.too_long, self.cut_prompt = too_long, cut_prompt
        self.invalid, self.max_invalid = invalid, max_invalid
        self.repeats = repeats
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        usual_buckets = self.default_bucket_batches
        self.bucket_batches = usual_buckets if bucket_batches is None else bucket_batches
        self.drop_last, self.pad_to_multiple_of = drop_last, pad_to_multiple_of
        self.num_workers, self.seed, self.cache_dir = num_workers, seed, cache_dir
        self.rows: dict[str, TokenizedRows] = {}
        self._tokenizer_option = tokenizer
        self.tokenizer_revision, self.trust_remote_code = tokenizer_revision, trust_remote_code
        reader: Format | FormatFinder = self.format
        if isinstance(self.format, Auto):
            reader = FormatFinder(self.format, self.takes, usual, type(self).__name__)
        records = self.records if own else None
        self._prepared = PreparedSources(self, reader, records)
        self.reports: dict[str, Report] = self._prepared.reports
        self._position = samplers.Position()
        self.check_options()

    def save_hyperparameters(self, *args: Any, **options: Any) -> None:
        """Lightning's, without its copies of objects: of a client or a lock there can be none, of a model it is dear.

        Args:
            args: As Lightning's.
            options: As Lightning's.
        """
        save_hyperparameters(self, *args, **options)

    def _set_hparams(self, hp: Any) -> None:
        set_hyperparameters(self, hp, is_plain)

    # -- what kinds of data define ------------------------------------------------------------------------------------

    def records(self, row: Row) -> list[Record]:
        """Turn a raw row into records; override this for a data set of your own.

        Raises:
            InvalidRowError: The row can't be used.
        """
        return self.format_of(next(name for name, each in self.sources.items() if each))(row)

    @property
    @abstractmethod
    def collators(self) -> Collators:
        """What makes batches of rows, by layout."""

    def collator(self) -> BranchedCollator:
        """What makes batches of this layout."""
        kind = self.collators[self.layout]
        return kind(pad_token_id(self.tokenizer), self.pad_to_multiple_of)

    def cache_key(self) -> Any:
        """What of this class decides which records a row becomes, as plain values: for the key of the cache.

        By default its code and the options that it has beyond those of this library's, kept under their names. Override
        it where something else decides too (the content of a file that `records` reads), or where this can't be had. A
        class attribute `version` stands for the code: change it whenever `records` gives other records.

        Raises:
            UnknownContentError: An option is kept under no attribute of its name, or code can't be read.
        """
        own = {**self.hparams, **vars(self)}
        return [describe_class(type(self)), users_options(type(self), own, skip=OPTION_RULES)]

    def check_options(self) -> None:
        """Refuse options that are out of range or contradict each other.

        Raises:
            ConfigurationError: They are, or do.
        """
        given = {**vars(self), **self.sources, "tokenizer": self._tokenizer_option}
        for name, (valid, allowed) in OPTION_RULES.items():
            check_option(valid(given[name]), self, name, given[name], allowed)
        layouts = ", ".join(self.collators)
        check_option(
            self.layout in list(self.collators), self, "layout", self.layout, f"one of {layouts}"
        )
        check_sources(self.sources, self.val_fraction)
        if self.cut_prompt != "start" and not self.too_long.startswith("truncate"):
            raise ConfigurationError(
                f"cut_prompt={self.cut_prompt!r} cuts nothing with too_long={self.too_long!r}. Set too_long: "
                "truncate_prompt, or leave cut_prompt out."
            )
        if type(self).records is not BranchedDataModule.records:
            refuse_formats(self.sources, type(self).__name__)

    # -- preparing ----------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded when it is first asked for."""
        option = self._tokenizer_option
        if not isinstance(option, str):
            return option
        return load_tokenizer(
            option, revision=self.tokenizer_revision, trust_remote_code=self.trust_remote_code
        )

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Equal for tokenizers that give the same ids; modules compare it with their model's."""
        return tokenizer_fingerprint(self.tokenizer)

    def prompt_form(self, name: str = "train") -> PromptForm | None:
        """How the prompts of the open train, val or test rows are written; None where they have none."""
        source = "train" if self.sources[name] is None else name  # val rows may be a part of those
        return form_of_prompts(self.rows[name], self.reports[source], self.tokenizer)

    @property
    def dataset_hash(self) -> str:
        """A hash of the training rows as they are used: source, format, tokenizer, limits and split."""
        split = [self.val_fraction, self.split_seed] if self.val_fraction > 0 else None
        return content_key({"rows": self._prepared.content("train"), "split": split})

    def prepare_data(self) -> None:
        """Tokenize every source that is not in the cache yet; Lightning calls this in one process per node.

        A Trainer that validates, tests or predicts needs no others than those it opens.
        """
        state = None if self.trainer is None else self.trainer.state
        running = state is not None and state.status == TrainerStatus.RUNNING
        stage = state.fn.value if state is not None and state.fn is not None and running else None
        self._require_source(stage)
        asked = self.sources if stage in (None, "fit") else _STAGES[stage][1]
        sources = {name: each for name, each in self.sources.items() if name in asked}
        for source in sources.values():
            if isinstance(source, FileSource):
                source.files()  # what isn't there is said before others are tokenized
        for name, source in sources.items():
            if source is not None:
                self._prepared.open(name, verify=True)

    def setup(self, stage: str | None = None) -> None:
        """Open the tokenized rows that a stage needs: fit, validate, test or predict. None: all there are."""
        names = [name for name in _STAGES if name]
        check_option(stage in _STAGES, self, "stage", stage, f"one of {', '.join(names)}, or None")
        stage = TrainerFn(stage).value if stage else None
        self._require_source(stage)
        opened, splits = _STAGES[stage][1], self.val_fraction > 0
        for name in opened:
            if self.sources[name] is not None:
                self.rows[name] = self._prepared.open(name, verify=False)
        if splits and "val" in opened:
            rows = self.rows["train"]
            train, val = rows.split(self.val_fraction, self.split_seed)
            if len(train) == 0 or len(val) == 0:
                raise DataError(
                    f"val_fraction {self.val_fraction} splits the {len(rows)} rows of {self.sources['train']} into "
                    f"{len(train)} to train on and {len(val)} to validate on: their prompts are too few. Give more "
                    "rows, another val_fraction or split_seed, or a source for `val`; or validate on nothing: "
                    "val_fraction 0."
                )
            self.rows |= {"train": train, "val": val}
        if stage in (None, "fit") and "train" in self.rows:
            shares = shares_of(self.sources["train"], self.rows["train"])
            if shares is not None:
                rank_zero_info(f"Mixture: {shares}.")

    def _require_source(self, stage: str | None) -> None:
        needed = _STAGES[stage][0]
        splits = needed == "val" and self.val_fraction > 0
        if needed is not None and self.sources[needed] is None and not splits:
            option = "`val` or `val_fraction`" if needed == "val" else f"`{needed}`"
            raise ConfigurationError(
                f"Stage {stage!r} needs the data option {option}, which is not set. Give it a source, on the command "
                f"line --data.{needed} FileSource --data.{needed}.path FILE."
            )

    def format_of(self, name: str) -> Format:
        """The format of the source train, val or test, of a mixture that of its first one."""
        return self._prepared.format_of(name)

    def logprob_stores(self, reference: str) -> list[ReferenceLogprobs]:
        """Where the log-probs of the open training and validation rows under a reference are kept.

        Args:
            reference: Hash of the reference's weights.
        """
        split = [self.val_fraction, self.split_seed] if self.val_fraction > 0 else None
        cache = TokenCache(cache_root(self.cache_dir))
        stores = []
        for name in ("train", "val"):
            if name in self.rows:
                rows = self._prepared.content("train" if split else name)
                part = [*split, name] if split else None
                key = content_key({"logprobs": reference, "rows": rows, "split": part})
                size = self.eval_batch_size or self.batch_size
                stores.append(ReferenceLogprobs(self.rows[name], cache, key, self.collator(), size))
        return stores

    # -- loaders ------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches, from the position that was restored, if one was."""
        rows = self._rows("train", "fit")
        if samplers.overfits(self.trainer):
            return self._loader(rows, self.batch_size)
        count, rank = samplers.replicas(self.trainer)
        try:
            sampler = samplers.LengthBucketSampler(
                rows.lengths,
                self.batch_size,
                num_replicas=count,
                rank=rank,
                seed=self.seed,
                bucket_batches=self.bucket_batches,
                drop_last=self.drop_last,
                position=self._position,
                shares=shares_of(self.sources["train"], rows),
            )
        except ConfigurationError as error:
            callbacks = callbacks_of(self.trainer) if self.trainer else ()
            if any(isinstance(each, BatchSizeFinder) for each in callbacks):
                error.add_note(
                    "BatchSizeFinder tried that size: with drop_last: false it ends where a batch holds all rows, and "
                    "with max_trials before it."
                )
            raise
        return self._loader(rows, self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Validation rows, by length where training rows are; an empty list where no validation data were asked for."""
        if self.sources["val"] is None and self.val_fraction == 0:
            # Lightning asks whether that was the intention; leaving `val` out says so.
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
            return []
        return self._evaluation_loader(self._rows("val", "fit"))

    def test_dataloader(self) -> DataLoader[Any]:
        """Test rows, by length where training rows are."""
        return self._evaluation_loader(self._rows("test", "test"))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Test rows in order; `index` in a batch says which."""
        return self._evaluation_loader(self._rows("test", "predict"), in_order=True)

    def _evaluation_loader(self, rows: TokenizedRows, *, in_order: bool = False) -> DataLoader[Any]:
        count, rank = samplers.replicas(self.trainer)
        size = samplers.even_batch_size(len(rows), self.eval_batch_size or self.batch_size, count)
        if samplers.overfits(self.trainer):
            return self._loader(rows, size)
        by_length = self.bucket_batches > 1 and not in_order
        sampler = samplers.EvaluationSampler(
            rows.lengths, size, num_replicas=count, rank=rank, by_length=by_length
        )
        return self._loader(rows, size, sampler)

    def _loader(
        self, rows: TokenizedRows, batch_size: int, sampler: Sampler[int] | None = None
    ) -> DataLoader[Any]:
        resumes = isinstance(sampler, samplers.LengthBucketSampler)
        kind = samplers.ResumableLoader if resumes else DataLoader
        options = samplers.loader_options(self.trainer, self.num_workers, self.seed)
        return kind(
            rows,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=self.collator(),
            **options,
        )

    def _rows(self, name: str, stage: str) -> TokenizedRows:
        if name not in self.rows:
            raise ConfigurationError(
                f"The {name} rows are not open: call prepare_data() and setup({stage!r}) first."
            )
        return self.rows[name]

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The position in the training data: plain values, the same on each process."""
        if self.sources["train"] is None:
            return {}
        position = self._position
        epoch = position.epoch
        done = position.batches_done - samplers.batches_in_flight(self.trainer)
        if done > 0 and samplers.is_epoch_over(self.trainer):
            epoch, done = epoch + 1, 0  # whose order is free
        return {
            "version": samplers.STATE_VERSION,
            "dataset_hash": self.dataset_hash,
            "order": self._order(),
            "epoch": epoch,
            "batches_done": max(done, 0),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a position. A Trainer that validates, tests or predicts has no use for one.

        Raises:
            CheckpointError: The position was made with other data, or within another order of them.
        """
        fits = self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING
        if not state_dict or not fits:
            return
        rows, source = self.dataset_hash, str(self.sources["train"])
        samplers.check_state(state_dict, dataset_hash=rows, order=self._order(), source=source)
        self._position.restore(int(state_dict["epoch"]), int(state_dict["batches_done"]))
        self._position.restored = True

    def _order(self) -> str:
        rows_per_step = self.batch_size * samplers.replicas(self.trainer)[0]
        buckets = f"bucket_batches {self.bucket_batches}, drop_last {self.drop_last}"
        order = f"{rows_per_step} rows per step, seed {self.seed}, {buckets}"
        weights = weights_of(self.sources["train"])
        return order if weights is None else f"{order}, weights {weights}"

    def _keep_plain_hyperparameters(self) -> None:
        # From Python, sources and tokenizers are live objects, which a checkpoint can't hold; from YAML they are plain.
        for name, value in list(self.hparams.items()):
            if isinstance(value, Source | Format | Repeats | PreTrainedTokenizerBase):
                del self.hparams[name]
            elif isinstance(value, Path):
                self.hparams[name] = str(value)
