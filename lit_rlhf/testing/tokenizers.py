"""Tokenizers built in code."""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, SYSTEM, USER, ASSISTANT)

MERGES = ("t h", "th e", "Ġ the", "i n", "e r")
"""A few merges, so that text and tokens differ in length and a cut can fall within a word."""

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|' + message['role'] + '|>' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{ message['content'] + eos_token }}{% endgeneration %}
{%- else %}
{{- message['content'] }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
"""`<|user|>question<|assistant|>answer<eos>`; the generation prompt is `<|assistant|>`."""


def make_tokenizer(
    *, merges: Sequence[str] = MERGES, bos: bool = False, specials_last: bool = False
) -> PreTrainedTokenizerFast:
    """Build a byte-level BPE tokenizer of 256 bytes, six special tokens and a few merges, with a chat template.

    Decoding what was encoded gives back any text. Pad and EOS are distinct tokens.

    Args:
        merges: Pairs to merge, in order of priority, in the byte-level alphabet (a space is `Ġ`).
        bos: Whether encoding puts `<bos>` in front (when special tokens are asked for).
        specials_last: Put the special tokens after the bytes: the same text gets other ids.

    Example:
        >>> tokenizer = make_tokenizer()
        >>> tokenizer.decode(tokenizer("the naïve 🙂")["input_ids"])
        'the naïve 🙂'
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = ["".join(pair.split(" ")) for pair in merges]
    texts, specials = [*alphabet, *merged], [*SPECIAL_TOKENS]
    names = texts + specials if specials_last else specials + texts
    pairs = [(left, right) for left, right in (pair.split(" ") for pair in merges)]
    core = Tokenizer(BPE(vocab={name: index for index, name in enumerate(names)}, merges=pairs))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    return _wrap(core, specials, bos=bos)


def make_word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per word, for worlds with a small closed vocabulary.

    Text is split at white space and joined by single spaces again; a word that is not listed becomes `<unk>`.

    Args:
        words: The vocabulary, without special tokens; repeated words count once.

    Example:
        >>> tokenizer = make_word_tokenizer(["a", "good", "film"])
        >>> tokenizer.decode(tokenizer("a good film")["input_ids"])
        'a good film'
    """
    specials = [*SPECIAL_TOKENS, "<unk>"]
    names = dict.fromkeys([*specials, *words])
    core = Tokenizer(
        WordLevel(vocab={name: index for index, name in enumerate(names)}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrap(core, specials, bos=False, unk_token="<unk>")


def _wrap(
    core: Tokenizer, specials: list[str], *, bos: bool, **tokens: str
) -> PreTrainedTokenizerFast:
    core.add_special_tokens(specials)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A",
            pair=f"{BOS} $A {BOS} $B",
            special_tokens=[(BOS, core.token_to_id(BOS))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        **tokens,
    )
