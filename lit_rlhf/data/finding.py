"""The formats of a DataModule's sources, found once for each and said."""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.formats import Format
from lit_rlhf.data.recognition import (
    Auto,
    Takes,
    choose,
    first_rows,
    layout_for,
    spell,
    unread_columns,
)
from lit_rlhf.data.rows import TokenizedRows
from lit_rlhf.data.showing import say_format
from lit_rlhf.data.sources import Source


@dataclass
class FormatFinder:
    """Finds the format of each source from its first rows.

    Args:
        auto: Says which formats take part beside the library's.
        takes: The kinds that the DataModule takes.
        usual: Its usual format, which reads a source without rows.
        module: What messages call the DataModule.
    """

    auto: Auto
    takes: Takes
    usual: Format
    module: str
    found: dict[int, Format] = field(default_factory=dict, init=False)

    def find(self, source: Source, tokenizer: PreTrainedTokenizerBase) -> Format:
        """The format of a source.

        Args:
            source: The DataModule's own, which lives as long as this.
            tokenizer: Whether it has a chat template decides how conversations are laid out.

        Raises:
            ConfigurationError: No format reads the rows, or several do.
        """
        if id(source) not in self.found:
            rows = first_rows(source)
            options = self.auto, self.takes, self.usual, str(source), self.module
            self.found[id(source)] = (
                choose(rows, *options, layout_for(tokenizer)) if rows else self.usual
            )
        return self.found[id(source)]


def say_found(
    source: Source, reader: Format, rows: TokenizedRows, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Say which format was found, with the first row as the model will see it."""
    if len(rows) > 0:
        unread = unread_columns(reader, first_rows(source))
        say_format(f"{source} is read as {spell(reader)}", rows[0], tokenizer, unread)
