"""Prompts together with a second stream, of text."""

from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any, cast

from torch.utils.data import DataLoader

from lit_rlhf.data.keys import content_key
from lit_rlhf.data.kinds import DemonstrationDataModule, PromptDataModule
from lit_rlhf.data.samplers import LengthBucketSampler, Position, ResumableLoader, overfits
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.options import check_option
from lit_rlhf.types import DemonstrationBatch, PromptBatch


class PromptTextDataModule(PromptDataModule):
    """Prompts to roll out from and text to go on imitating: training batches are `PromptBatch`es with `text`.

    For PPO-ptx. Each batch of prompts comes with the next batch of text; when the text is used up it begins again, in
    the order of its next epoch. Which batch of text comes is a function of how many batches of prompts came before it,
    so a resumed run goes on with the right one and there is no second position to save.

    Args:
        *args: As for `PromptDataModule`.
        text: The text: demonstrations, or plain text with `format: PlainText`. Only its training rows are used, and its
            `batch_size` is the rows of text per iteration and process. Its tokenizer must be that of the prompts.
        **kwargs: As for `PromptDataModule`.

    Raises:
        ConfigurationError: `text` has no training rows or another tokenizer, or Trainer(overfit_batches) is set.
    """

    def __init__(self, *args: Any, text: DemonstrationDataModule, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.text = text
        valid = isinstance(text, DemonstrationDataModule)
        check_option(valid, self, "text", text, "a DemonstrationDataModule")
        if text.sources["train"] is None:
            raise ConfigurationError(
                "PromptTextDataModule.text has no training rows: set its option `train`."
            )

    @property
    def dataset_hash(self) -> str:
        """Of the prompts and of the text."""
        return content_key({"prompts": super().dataset_hash, "text": self.text.dataset_hash})

    def prepare_data(self) -> None:
        """Tokenize both."""
        super().prepare_data()
        self.text.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Open both; text is for training alone."""
        super().setup(stage)
        if stage not in ("fit", None):
            return
        if self.text.tokenizer_fingerprint != self.tokenizer_fingerprint:
            raise ConfigurationError(
                "PromptTextDataModule.text was given another tokenizer than the prompts: its ids would mean other "
                "words. Point both at the same directory."
            )
        self.text.trainer = self.trainer
        self.text.setup("fit")

    def train_dataloader(self) -> Any:
        """Prompts with text."""
        if overfits(self.trainer):
            raise ConfigurationError(
                "PromptTextDataModule can't be used with Trainer(overfit_batches)."
            )
        return PairedLoader(super().train_dataloader(), self.text.train_dataloader())

    def _order(self) -> str:
        return f"{super()._order()}; text: {self.text._order()}"  # noqa: SLF001 (its base class is ours)

    def _keep_plain_hyperparameters(self) -> None:
        super()._keep_plain_hyperparameters()
        if isinstance(self.hparams.get("text"), DemonstrationDataModule):
            del self.hparams["text"]


class PairedLoader:
    """Batches of one loader, each with the batch of another that belongs to its number.

    Args:
        prompts: Says how long an epoch is, and is what trainers set the epoch of.
        text: Goes round as often as is needed.
    """

    def __init__(self, prompts: DataLoader[Any], text: DataLoader[Any]) -> None:
        assert isinstance(prompts, ResumableLoader) and isinstance(text, ResumableLoader)
        self.prompts, self.text = prompts, text
        self.sampler = prompts.sampler

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[PromptBatch]:
        texts: Iterator[DemonstrationBatch] | None = None
        for prompts in self.prompts:
            if texts is None:  # the position stands only once the first batch of prompts is there
                position = _position(self.prompts)
                number = position.epoch * len(self.prompts) + position.batches_done - 1
                _position(self.text).restore(*divmod(number, len(self.text)))
                texts = chain.from_iterable(repeat(self.text))  # without end
            yield cast("PromptBatch", {**prompts, "text": next(texts)})

    def state_dict(self) -> dict[str, int]:
        """That of the prompts."""
        return self.prompts.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the prompts'; the text follows."""
        self.prompts.load_state_dict(state)


def _position(loader: ResumableLoader[Any]) -> Position:
    assert isinstance(loader.sampler, LengthBucketSampler)
    return loader.sampler.position
