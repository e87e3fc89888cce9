"""One source of a DataModule as tokenized rows: what names them in the cache, and what is there under that name."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.cache import Entry, TokenCache, cache_root
from lit_rlhf.data.conversion import Shape
from lit_rlhf.data.encoding import Encoder
from lit_rlhf.data.finding import say_found
from lit_rlhf.data.formats import Format
from lit_rlhf.data.grouping import grouped
from lit_rlhf.data.keys import UnknownContentError, code_of_preparation, content_key
from lit_rlhf.data.preparation import Preparation
from lit_rlhf.data.records import Record, Row
from lit_rlhf.data.report import InvalidPolicy, LengthPolicy, Report, say
from lit_rlhf.data.rows import TokenizedRows
from lit_rlhf.data.sources import Source

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokenization:
    """How a DataModule's rows become tokens; its options of the same names.

    Args:
        module: The DataModule, whose class and own options decide too (see `lit_rlhf.data.keys`).
        fingerprint: Of the tokenizer.
    """

    module: Any
    shape: Shape
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    max_prompt_length: int | None
    max_completion_length: int | None
    too_long: LengthPolicy
    invalid: InvalidPolicy
    max_invalid: float
    cache_dir: str | None


class PreparedSource:
    """A source, its place in the cache of tokens, and the report of what became of its rows.

    Args:
        source: Where the rows come from.
        reader: The format that reads them.
        how: What else decides which tokens they become.
        convert: From a row to its records; default: the format.
        found: Whether the format was found, and so is to be said.
    """

    def __init__(
        self,
        source: Source,
        reader: Format,
        how: Tokenization,
        convert: Callable[[Row], list[Record]] | None = None,
        *,
        found: bool = False,
    ) -> None:
        self.source, self.reader, self.how, self.found = source, reader, how, found
        self.convert = convert or reader
        self.report: Report | None = None
        self._checksum = ""
        self._uncached = False

    @cached_property
    def key(self) -> str:
        """Names the tokenized rows in the cache: a hash of all that decides what they are."""
        how = self.how
        limits = [how.max_prompt_length, how.max_completion_length, how.too_long, how.invalid]
        parts: dict[str, Any] = {
            "code": code_of_preparation(),
            "source": self.source.fingerprint(),
            "module": how.module,
            "format": self.reader,
            "shape": how.shape,
            "tokenizer": how.fingerprint,
            "limits": limits,
        }
        try:
            return content_key(parts)
        except UnknownContentError as error:
            self._uncached = True
            _log.warning(
                "Tokens are not kept for the next run: %s. State a class attribute `version`, or give the class "
                "a method `cache_key` with what decides.",
                error,
            )
            return content_key({**parts, "module": str(type(how.module)), "format": ""})

    @property
    def content(self) -> str:
        """What names the content; where the key doesn't, the rows themselves do."""
        key = self.key
        if self._uncached and not self._checksum:
            self.entry(verify=False)
        return f"{key} {self._checksum}" if self._uncached else key

    def entry(self, *, verify: bool) -> Entry:
        """The tokenized rows, from the cache where they are there; the first time, what became of the rows is said.

        Args:
            verify: Compare checksums, by whoever prepares.

        Raises:
            DataError: Rows were left out against the options, or none is left.
        """
        how, key = self.how, self.key
        policies = how.invalid, how.too_long, how.max_invalid
        limits = how.max_prompt_length, how.max_completion_length
        encoder = Encoder(how.tokenizer, *limits, truncate=how.too_long == "truncate")
        source = grouped(self.source, self.reader)
        preparation = Preparation(source, self.convert, encoder, how.shape, *policies)
        cache = TokenCache(cache_root(how.cache_dir))
        rebuild = self._uncached and verify  # by whoever prepares, once; others open what he made
        entry = cache.get_or_build(
            key, preparation, preparation.report.to_json, verify=verify, rebuild=rebuild
        )
        if self.report is None:
            self._checksum = entry.checksum
            self.report = Report.from_json(entry.meta)
            say(self.report)
            if self.found:
                say_found(self.source, self.reader, TokenizedRows([entry]), how.tokenizer)
        self.report.judge(*policies)
        return entry
