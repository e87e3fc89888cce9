"""The formats of a DataModule's sources, found once for each and said."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.formats import Format
from lit_rlhf.data.recognition import Auto, Takes, choose, first_rows, spell, unread_columns
from lit_rlhf.data.rows import TokenizedRows
from lit_rlhf.data.showing import say_difference, say_format
from lit_rlhf.data.sources import Source


@dataclass
class FormatFinder:
    """Finds the format of each source from its first rows.

    Args:
        sources: The sources by name, None where there is none.
        auto: Says which formats take part beside the library's.
        takes: The kinds that the DataModule takes.
        usual: Its usual format, which reads a source without rows.
        module: What messages call the DataModule.
    """

    sources: Mapping[str, Source | None]
    auto: Auto
    takes: Takes
    usual: Format
    module: str
    found: dict[str, Format] = field(default_factory=dict, init=False)

    def find(self, name: str, tokenizer: PreTrainedTokenizerBase) -> Format:
        """The format of a source; one that differs from that of the training rows is warned of.

        Args:
            name: train, val or test.
            tokenizer: Whether it has a chat template decides how conversations are laid out.

        Raises:
            ConfigurationError: No format reads the rows, or several do.
        """
        source = self.sources[name]
        if name in self.found or source is None:
            return self.found.get(name, self.usual)
        rows, template = first_rows(source), tokenizer.chat_template is not None
        self.found[name] = self.usual
        if rows:
            options = self.auto, self.takes, self.usual, str(source), self.module
            self.found[name] = choose(rows, *options, template=template)
        if name != "train" and self.sources["train"] is not None:
            train = self.find("train", tokenizer)
            say_difference(name, spell(self.found[name]), spell(train))
        return self.found[name]

    def say(self, name: str, rows: TokenizedRows, tokenizer: PreTrainedTokenizerBase) -> None:
        """Say which format was found, with the first row as the model will see it."""
        source = self.sources[name]
        if source is not None and len(rows) > 0:
            reader = self.find(name, tokenizer)
            unread = unread_columns(reader, first_rows(source))
            say_format(f"{source} is read as {spell(reader)}", rows[0], tokenizer, unread)
