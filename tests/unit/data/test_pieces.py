"""Ids put together from those of words are the tokenizer's own, for every way of cutting that models come with."""

import random
from typing import Any

import pytest
from tokenizers import (
    Regex,
    Tokenizer,
    normalizers,
    pre_tokenizers as cutting,
    processors,
    trainers,
)
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import Record, encoding, pieces
from lit_rlhf.data.encoding import Encoder
from lit_rlhf.data.pieces import find_pieces
from lit_rlhf.testing import make_tokenizer
from lit_rlhf.tokenizers import ask_backend
from tests.walks import walk

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MARKS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SIGNS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ODD = (
    *(
        "  ",
        " ",
        "\n",
        "\r\n",
        "\t",
        "don't",
        "'LL",
        "'\u017f",
        "1234",
        "½",
        "…",
        "“",
        "”",
        "—",
        "\u0301",
    ),
    *(
        "é",
        "e\u0301",
        "<x>",
        "<eos",
        "<eos>",
        "_",
        "\x1c",
        "\x85",
        "\u2028",
        "x=y;",
        "))",
        "中",
        "🙂",
    ),
    *(" a", "A", "ǅ", "ʰ", "\u200d", "\u00ad", "[", "]", "\\"),
)


def split(*patterns: str) -> cutting.PreTokenizer:
    cuts = [cutting.Split(Regex(pattern), "isolated") for pattern in patterns]
    return cutting.Sequence([*cuts, cutting.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt_2() -> cutting.PreTokenizer:
    return cutting.ByteLevel(add_prefix_space=False, use_regex=True)


KINDS: dict[str, tuple[cutting.PreTokenizer, normalizers.Normalizer | None]] = {
    "GPT-2": (gpt_2(), None),
    "Llama 3": (split(LLAMA_3), None),
    "Qwen 2": (split(LLAMA_3.replace("{1,3}", "")), normalizers.NFC()),
    "Qwen 3.5": (split(MARKS), normalizers.NFC()),
    "Mistral": (split(CASES), None),
    "SmolLM": (cutting.Sequence([cutting.Digits(individual_digits=True), gpt_2()]), None),
    "DeepSeek": (split(r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u30ff]+", SIGNS), None),
}


def some_texts(rng: random.Random, count: int) -> list[str]:
    words = ["".join(rng.choices("abcdeéfghßilmnop", k=rng.randint(1, 7))) for _ in range(200)]
    parts = [*ODD, *words, *(f" {word}" for word in words)]
    return ["".join(rng.choices(parts, k=rng.randint(0, 40))) for _ in range(count)]


def trained(
    cut: cutting.PreTokenizer | None, normalizer: Any, texts: list[str], **model: Any
) -> Tokenizer:
    core = Tokenizer(BPE(**model))
    if cut is not None:
        core.pre_tokenizer = cut
    if normalizer is not None:
        core.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=cutting.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<eos>"],
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<pad> $A <eos>", special_tokens=[("<pad>", 0), ("<eos>", 1)]
    )
    return core


@pytest.mark.parametrize("kind", walk(KINDS, *list(KINDS)[:2]))
def test_ids_are_those_of_the_tokenizer(kind: str) -> None:
    rng = random.Random(kind)
    core = trained(*KINDS[kind], some_texts(rng, 300))
    found = find_pieces(core)
    assert found is not None
    texts = some_texts(rng, 3000)
    for special in (False, True):
        assert found(texts, special) == ask_backend(core, texts, special)
    by_pieces = sum(found._ids(text) is not None for text in texts)
    assert by_pieces > 0.2 * len(texts)  # the rest holds odd characters or a special token
    assert found._ids("plain words, 'quoted' – naïve: 12") is not None


@pytest.mark.parametrize(
    ("cut", "normalizer", "model"),
    [
        (None, None, {}),
        (cutting.Metaspace(), None, {}),
        (cutting.Whitespace(), None, {}),
        (cutting.ByteLevel(add_prefix_space=True), None, {}),
        (cutting.ByteLevel(add_prefix_space=False, use_regex=False), None, {}),
        (gpt_2(), normalizers.Lowercase(), {}),
        (gpt_2(), None, {"dropout": 0.1}),
        (split(r"\p{Han}+"), None, {}),
        (split(r"(a)|(b)"), None, {}),
        (split(r"[a-z&&[^aeiou]]+"), None, {}),
        (cutting.Split(Regex(r" "), "removed"), None, {}),
    ],
    ids=str,
)
def test_others_are_left_to_the_tokenizer(
    cut: cutting.PreTokenizer | None, normalizer: Any, model: dict[str, Any]
) -> None:
    core = trained(cut, normalizer, some_texts(random.Random(0), 100), **model)
    assert find_pieces(core) is None


def test_a_probe_that_differs_leaves_all_to_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    core = make_tokenizer().backend_tokenizer
    assert find_pieces(core) is not None
    monkeypatch.setattr(pieces, "_WORDS", pieces._WORDS.replace(r" ?\p{N}+", r" ?[0-8]+|9"))
    assert find_pieces(core) is None


def test_known_pieces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_MOST_PIECES", 10)
    core = make_tokenizer().backend_tokenizer
    found = find_pieces(core)
    assert found is not None
    texts = [f"number {number} of many" for number in range(200)]
    assert found(texts, False) == ask_backend(core, texts, False)
    assert len(found._known) <= 10 + 20


@pytest.mark.parametrize("bos", [False, True])
def test_records_are_the_same_whether_many_or_few(
    bos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer(bos=bos)
    texts = some_texts(random.Random(1), 400)
    records = [Record(texts[n], (texts[n + 1] + "a", texts[n + 2])) for n in range(398)]
    records.append(Record("half a \ud800", ("a", "b")))
    few = Encoder(tokenizer).encode(records)
    monkeypatch.setattr(encoding, "_FEW_TEXTS", 0)
    encoder = Encoder(tokenizer)
    many = encoder.encode(records)
    assert isinstance(encoder._ids._ask, pieces.Pieces)
    assert list(map(str, many)) == list(map(str, few))


def test_a_limit_set_on_the_way_is_the_tokenizers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_FEW_TEXTS", 0)
    tokenizer: PreTrainedTokenizerFast = make_tokenizer()
    encoder = Encoder(tokenizer)
    before = encoder(Record("a long prompt", (" and",)))
    tokenizer.backend_tokenizer.enable_truncation(3)
    assert encoder(Record("a long prompt", (" and",))) == before
