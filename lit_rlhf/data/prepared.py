"""The sources of a DataModule as tokenized rows: what names them in the cache, and what is there under that name."""

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Protocol

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.conversion import Shape, Source, grouped
from lit_rlhf.data.encoding import Encoder, LengthPolicy, PromptCut
from lit_rlhf.data.finding import FormatFinder, say_found
from lit_rlhf.data.formats import Format
from lit_rlhf.data.keys import UnknownContentError, code_of_preparation, content_key
from lit_rlhf.data.mixture import Mixture, Shares
from lit_rlhf.data.preparation import InvalidPolicy, Preparation, Report, say
from lit_rlhf.data.recognition import spell
from lit_rlhf.data.records import Record, Row
from lit_rlhf.data.repeats import Repeats
from lit_rlhf.data.rows import Entry, TokenCache, TokenizedRows, cache_root
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.prompt_form import PromptForm

_LOOKED_AT = 256
_log = logging.getLogger(__name__)


class Tokenizing(Protocol):
    """What of a DataModule decides how its rows become tokens; its class and own options do too (`keys.py`)."""

    sources: dict[str, Source | None]
    shape: ClassVar[Shape]
    max_prompt_length: int | None
    max_completion_length: int | None
    too_long: LengthPolicy
    cut_prompt: PromptCut
    invalid: InvalidPolicy
    max_invalid: float
    repeats: Repeats | None
    cache_dir: str | None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Loaded when it is first asked for."""

    @property
    def tokenizer_fingerprint(self) -> str:
        """Equal for tokenizers that give the same ids."""


class PreparedSource:
    """A source, its place in the cache of tokens, and the report of what became of its rows.

    Args:
        source: Where the rows come from.
        reader: The format that reads them.
        how: The DataModule, which says what else decides which tokens they become.
        convert: From a row to its records; default: the format.
        found: Whether the format was found, and so is to be said.
    """

    def __init__(
        self,
        source: Source,
        reader: Format,
        how: Tokenizing,
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
        limits = [how.max_prompt_length, how.max_completion_length]
        parts: dict[str, Any] = {
            "code": code_of_preparation(),
            "source": self.source.fingerprint(),
            "module": how,
            "format": self.reader,
            "shape": how.shape,
            "tokenizer": how.tokenizer_fingerprint,
            "limits": [*limits, how.too_long, how.cut_prompt, how.invalid],
            "repeats": how.repeats,
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
            return content_key({**parts, "module": str(type(how)), "format": ""})

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
        encoder = Encoder(how.tokenizer, *limits, how.too_long, how.cut_prompt)
        source = grouped(self.source, self.reader)
        preparation = Preparation(source, self.convert, encoder, how.shape, *policies, how.repeats)
        cache = TokenCache(cache_root(how.cache_dir))
        rebuild = self._uncached and verify  # by whoever prepares, once; others open what he made
        entry = cache.get_or_build(
            key, preparation, preparation.report.to_json, verify=verify, rebuild=rebuild
        )
        if self.report is None:
            self._checksum = entry.checksum
            self.report = Report.from_json(entry.meta, str(self.source))
            say(self.report)
            if self.found:
                say_found(self.source, self.reader, TokenizedRows([entry]), how.tokenizer)
        self.report.judge(*policies)
        return entry


class PreparedSources:
    """The sources train, val and test of a DataModule, each by its format as tokenized rows.

    Args:
        how: The DataModule.
        reader: The format of all sources, or what finds it for each.
        records: How the DataModule turns a row into records by a method of its own. None: as the format says.
    """

    def __init__(
        self,
        how: Tokenizing,
        reader: Format | FormatFinder,
        records: Callable[[Row], list[Record]] | None,
    ) -> None:
        self.how, self.reader, self.records = how, reader, records
        self.reports: dict[str, Report] = {}
        self._prepared: dict[str, list[PreparedSource]] = {}

    def format_of(self, name: str) -> Format:
        """The format of a source, of a mixture that of its first one."""
        source, given = sources_of(self._source(name))[0]
        return given or self._format_of(source)

    def content(self, name: str) -> str:
        """What names the tokenized rows of a source."""
        contents = [each.content for each in self._prepare(name)]
        return contents[0] if len(contents) == 1 else content_key({"sources": contents})

    def open(self, name: str, *, verify: bool) -> TokenizedRows:
        """The rows of a source, tokenized where they are not in the cache yet; `reports` then says what became of them.

        Args:
            name: train, val or test.
            verify: Compare checksums, by whoever prepares.
        """
        prepared = self._prepare(name)
        rows = TokenizedRows([each.entry(verify=verify) for each in prepared])
        self.reports[name] = Report.of_all([each.report for each in prepared if each.report])
        return rows

    def _prepare(self, name: str) -> list[PreparedSource]:
        if name not in self._prepared:
            finds = isinstance(self.reader, FormatFinder)
            self._prepared[name] = [
                PreparedSource(
                    source,
                    given or self._format_of(source),
                    self.how,
                    given or self.records,
                    found=finds and given is None,
                )
                for source, given in sources_of(self._source(name))
            ]
            if finds and name != "train" and self.how.sources["train"] is not None:
                self._compare(name)
        return self._prepared[name]

    def _compare(self, name: str) -> None:
        """Warn where rows are read otherwise than those to train on."""
        try:
            usual = dict.fromkeys(spell(each.reader) for each in self._prepare("train"))
        except DataError:
            return  # said where they are needed, as they need not be to validate, test or predict
        for spelled in dict.fromkeys(spell(each.reader) for each in self._prepared[name]):
            if spelled not in usual:
                rank_zero_warn(
                    f"The {name} rows are read as {spelled}, the training rows as {', '.join(usual)}. Set `format` if "
                    "that is not meant."
                )

    def _format_of(self, source: Source) -> Format:
        if isinstance(self.reader, FormatFinder):
            return self.reader.find(source, self.how.tokenizer)
        return self.reader

    def _source(self, name: str) -> Source:
        source = self.how.sources[name]
        if source is None:
            raise ConfigurationError(f"The data option `{name}` is needed here, and is not set.")
        return source


def form_of_prompts(
    rows: TokenizedRows, report: Report, tokenizer: PreTrainedTokenizerBase
) -> PromptForm | None:
    """How the prompts of rows are written; None where they have none.

    Args:
        rows: Some of them, spread evenly, are looked at.
        report: Of their preparation.
        tokenizer: Decodes them; its chat template renders conversations.
    """
    if report.chats:
        if report.chats < report.records:
            return PromptForm("mixed", "", None)
        return PromptForm.of_chats(tokenizer, report.systems)
    chosen = [rows[at] for at in range(0, len(rows), max(len(rows) // _LOOKED_AT, 1))]
    starts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    prompts = [
        ids[1:] if ids[0] in starts else ids for ids in (row["prompt_ids"] for row in chosen)
    ]
    return (
        PromptForm.of_texts([str(tokenizer.decode(ids)) for ids in prompts])
        if any(prompts)
        else None
    )


def sources_of(source: Source) -> list[tuple[Source, Format | None]]:
    """The sources of a mixture, or the source itself, each with the format that it was given."""
    if isinstance(source, Mixture):
        formats = [each.format for each in source.portions]
        return list(zip(source.sources, formats, strict=True))
    return [(source, None)]


def weights_of(source: Source | None) -> list[float] | None:
    """The weights of a mixture's portions; None where there are none."""
    portions = source.portions if isinstance(source, Mixture) else []
    return [each.weight for each in portions if each.weight is not None] or None


def shares_of(source: Source | None, rows: TokenizedRows) -> Shares | None:
    """Which of the rows of a source an epoch has, where it is a mixture with weights.

    Raises:
        ConfigurationError: A weight gives an epoch no row.
    """
    weights = weights_of(source)
    if source is None or weights is None:
        return None
    return Shares(rows.sizes, weights, [str(each) for each, _ in sources_of(source)])
