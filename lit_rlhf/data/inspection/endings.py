"""Signs that a text or a chat template went wrong: special tokens in text, endings, start tokens, odd characters."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.inspection.items import Item
from lit_rlhf.tokenizers import end_of_turn_id, special_token_ids

_COMMON = (
    "<s> </s> <bos> <eos> <pad> <unk> <|endoftext|> <|im_start|> <|im_end|> <|eot_id|> <|eom_id|> <|begin_of_text|> "
    "<|end_of_text|> <|start_header_id|> <|end_header_id|> <start_of_turn> <end_of_turn> [INST] [/INST] <<SYS>> "
    "<</SYS>> <|system|> <|user|> <|assistant|> <|end|> <\uff5cbegin\u2581of\u2581sentence\uff5c> "
    "<\uff5cend\u2581of\u2581sentence\uff5c>"
)
"""Special tokens of well-known models; none of them belongs into a text."""
_ODD: Mapping[str, re.Pattern[str]] = {
    "a character that was lost (U+FFFD)": re.compile("\ufffd"),
    "text of another encoding (such as Ã© for é)": re.compile("â€[\u2122\u0153\x9d]|Ã[©¨¤¶¼±]"),
    "HTML entities (such as &amp;)": re.compile(r"&(?:amp|lt|gt|quot|nbsp|#\d{2,4});"),
    "control characters": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"),
}
_CODE = "```"


@dataclass(frozen=True)
class TextFacts:
    """Signs that texts went wrong.

    Args:
        special: Records by special token that is written in their text.
        odd: Records by what is odd in their text.
        unfinished: By part (chosen, rejected, answer): how many answers there are, and how many of them end within a
            sentence (in no sign that ends one) or within a block of code.
        with_system: Conversations with a system turn.
        turns: Records by the roles of their prompt.
    """

    special: Mapping[str, int]
    odd: Mapping[str, int]
    unfinished: Mapping[str, tuple[int, int]]
    with_system: int
    turns: Mapping[str, int]


@dataclass(frozen=True)
class TokenFacts:
    """Signs that tokens went wrong.

    Args:
        tokenizer: Its name.
        start_twice: Records with a start token behind their first token.
        no_start: Records without a start token in front, of a tokenizer that has one.
        ends: Answers by their last token.
        no_end: Answers whose last token ends nothing.
        template: Whether there is a chat template.
        end_of_turn: The token with which the template ends an answer; None: it ends it with none.
        cut_prompts: Conversations whose prompt the template renders otherwise once an answer follows.
        pad_is_end: Whether the token for padding is the one that ends a text.
    """

    tokenizer: str
    start_twice: int
    no_start: int
    ends: Mapping[str, int]
    no_end: int
    template: bool
    end_of_turn: str | None
    cut_prompts: int
    pad_is_end: bool


class Texts:
    """Looks at texts.

    Args:
        tokenizer: Its special tokens are looked for, beside those of well-known models.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        added = {} if tokenizer is None else tokenizer.added_tokens_decoder
        own = (str(token) for token in added.values() if token.special)
        tokens = {*_COMMON.split(), *(token for token in own if len(token) > 2)}
        self._special = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
        self._first = re.compile(f"[{re.escape(''.join({token[0] for token in tokens}))}]")
        self._counts: Counter[str] = Counter()
        self._odd: Counter[str] = Counter()
        self._turns: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()
        self._unfinished: Counter[str] = Counter()
        self._systems = 0

    def add(self, item: Item) -> None:
        """Look at a record."""
        texts = (item.prompt, *item.answers)
        self._counts.update(
            {t for text in texts if self._first.search(text) for t in self._special.findall(text)}
        )
        self._odd.update(name for name, sign in _ODD.items() if any(map(sign.search, texts)))
        for name, answer in zip(item.names, item.answers, strict=True):
            self._answers[name] += 1
            self._unfinished[name] += is_unfinished(answer)
        prompt = item.record.prompt
        if not isinstance(prompt, str):
            roles = [turn["role"] for turn in prompt]
            self._systems += roles[0] in ("system", "developer")
            kept = (
                roles if len(roles) <= 6 else [*roles[:2], f"... {len(roles) - 3} more", roles[-1]]
            )
            self._turns[", ".join(kept)] += 1

    def result(self) -> TextFacts:
        """What was found."""
        unfinished = {
            name: (count, self._unfinished[name]) for name, count in self._answers.items()
        }
        special, odd = dict(self._counts.most_common()), dict(self._odd.most_common())
        return TextFacts(special, odd, unfinished, self._systems, dict(self._turns.most_common(12)))


class Tokens:
    """Looks at tokens.

    Args:
        tokenizer: Whose they are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ends_something = special_token_ids(tokenizer)
        self._ends: Counter[int] = Counter()
        self._twice = self._no_start = self._no_end = 0

    def add(self, item: Item) -> None:
        """Look at a record."""
        assert item.encoded is not None
        prompt, completions, _ = item.encoded
        start = self._tokenizer.bos_token_id
        if start is not None:
            ends_too = start == self._tokenizer.eos_token_id  # then it stands between turns too
            inside = start in prompt[1:] or any(start in ids for ids in completions)
            self._twice += inside and not ends_too
            self._no_start += prompt[0] != start
        last = completions[-1:] if item.record.steps else completions
        for ids in last:
            self._ends[ids[-1]] += 1
            self._no_end += ids[-1] not in self._ends_something

    def result(self, cut_prompts: int) -> TokenFacts:
        """What was found.

        Args:
            cut_prompts: See `TokenFacts`.
        """
        tokenizer, decode = self._tokenizer, self._tokenizer.convert_ids_to_tokens
        ends = {str(decode(index)): count for index, count in self._ends.most_common(12)}
        turn = end_of_turn_id(tokenizer)
        return TokenFacts(
            tokenizer=str(tokenizer.name_or_path) or type(tokenizer).__name__,
            start_twice=self._twice,
            no_start=self._no_start,
            ends=ends,
            no_end=self._no_end,
            template=tokenizer.chat_template is not None,
            end_of_turn=None if turn is None else str(decode(turn)),
            cut_prompts=cut_prompts,
            pad_is_end=tokenizer.pad_token_id == tokenizer.eos_token_id,
        )


def is_unfinished(answer: str) -> bool:
    """Whether a text of ten words or more ends within a sentence, or any text within a block of code.

    Example:
        >>> [is_unfinished(text) for text in ("4", "so " * 12 + "it", "so " * 12 + "it.", "```py")]
        [False, True, False, True]
    """
    end = answer.rstrip()[-1:]
    if answer.count(_CODE) % 2:
        return True
    goes_on = end.isalnum() or (end != "" and end in ",-–—(")
    return goes_on and answer.count(" ") >= 9
