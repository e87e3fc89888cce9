from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import AsTranscript, PromptOnly
from lit_rlhf.data.encoding import Encoded, Encoder
from lit_rlhf.data.records import InvalidRowError, Record, TooLongError
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.testing import make_tokenizer

USER = {"role": "user", "content": "hi"}
GOOD = {"role": "assistant", "content": "hello"}
BAD = {"role": "assistant", "content": "go"}


def texts(tokenizer: PreTrainedTokenizerFast, encoded: Encoded) -> tuple[str, list[str]]:
    return tokenizer.decode(encoded.prompt), [tokenizer.decode(ids) for ids in encoded.completions]


def template(tokenizer: PreTrainedTokenizerFast, text: str) -> PreTrainedTokenizerFast:
    tokenizer.chat_template = text
    return tokenizer


def test_calls_of_tools_that_nothing_reads_would_be_lost(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    call = {"type": "function", "function": {"name": "w", "arguments": {}}}
    calling = {**GOOD, "tool_calls": [call]}
    for record in (Record([USER], ([calling],)), Record([USER, calling, USER], ([GOOD],))):
        with pytest.raises(InvalidRowError, match="tool_calls would be lost: set tokenizer"):
            Encoder(tokenizer)(record)
        with pytest.raises(InvalidRowError, match="it has tool_calls; take the tokenizer of"):
            AsTranscript(PromptOnly()).convert(record)
    Encoder(tokenizer)(Record([USER], ([{**GOOD, "tool_calls": None}],)))
    reads = "{{ messages[1].tool_calls[0].function.name }}" + str(tokenizer.chat_template)
    encoded = Encoder(template(tokenizer, reads))(Record([USER, calling, USER], ([GOOD],)))
    assert texts(tokenizer, encoded)[0].startswith("w<|user|>")


class TestPlainText:
    def test_completions_end_in_one_eos(self, tokenizer: PreTrainedTokenizerFast) -> None:
        encoded = Encoder(tokenizer)(Record("q:", (" a", " b<eos>")))
        assert texts(tokenizer, encoded) == ("q:", [" a<eos>", " b<eos>"])

    def test_bos_is_the_tokenizers(self) -> None:
        tokenizer = make_tokenizer(bos=True)
        for prompt in ("q:", "<bos>q:"):  # spelled out in the text, it is not doubled
            encoded = Encoder(tokenizer)(Record(prompt, (" a",)))
            assert texts(tokenizer, encoded) == ("<bos>q:", [" a<eos>"])

    def test_an_eos_that_the_tokenizer_adds_is_no_part_of_the_prompt(self) -> None:
        tokenizer = make_tokenizer()
        from tokenizers import processors

        eos = tokenizer.eos_token_id
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", eos)]
        )
        encoded = Encoder(tokenizer)(Record("q:", (" a",)))
        assert texts(tokenizer, encoded) == ("q:", [" a<eos>"])

    def test_prompt_tokens_are_those_of_the_prompt_alone(self) -> None:
        # "t" + "he" would become the single token "the": the seam stays where it is, for every completion.
        tokenizer = make_tokenizer(merges=("t h", "th e"))
        encoded = Encoder(tokenizer)(Record("t", ("he", "a")))
        assert encoded.prompt == tokenizer("t")["input_ids"]
        assert texts(tokenizer, encoded) == ("t", ["he<eos>", "a<eos>"])

    @pytest.mark.parametrize("completion", ["a", "b"])  # "b" would merge with the colon before it
    def test_no_space_comes_in_at_the_seam(self, completion: str) -> None:
        # As in Llama 2, a space is put before any text, so a completion tokenized by itself would begin with one.
        letters = ["▁", "\n", *"abq:", ":b"]
        core = Tokenizer(
            BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[(":", "b")])
        )
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        core.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
        encoded = Encoder(tokenizer)(Record("q:", (completion,)))
        tokens = [
            tokenizer.convert_ids_to_tokens(ids) for ids in (encoded.prompt, encoded.completions[0])
        ]
        assert tokens == [["▁", "q", ":"], [completion, "<eos>"]]

    def test_text_without_prompt_starts_after_bos_or_eos(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        record = Record("", ("a b",))
        assert texts(tokenizer, Encoder(tokenizer)(record)) == ("<bos>", ["a b<eos>"])
        assert texts(tokenizer, Encoder(make_tokenizer(bos=True))(record)) == (
            "<bos>",
            ["a b<eos>"],
        )
        tokenizer.bos_token = None
        assert texts(tokenizer, Encoder(tokenizer)(record)) == ("<eos>", ["a b<eos>"])

    def test_a_tokenizer_without_eos_is_refused(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.eos_token = None
        with pytest.raises(ConfigurationError, match="has no EOS token"):
            Encoder(tokenizer)(Record("q", ("a",)))
        assert Encoder(tokenizer)(Record("q")).prompt == tokenizer("q")["input_ids"]


class TestConversations:
    def test_the_template_renders_and_the_generation_prompt_belongs_to_the_prompt(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        encoded = Encoder(tokenizer)(Record([USER], ([GOOD], [BAD])))
        assert texts(tokenizer, encoded) == ("<|user|>hi<|assistant|>", ["hello<eos>", "go<eos>"])
        assert Encoder(tokenizer)(Record([USER])).prompt == encoded.prompt

    def test_no_bos_is_added_to_what_the_template_renders(self) -> None:
        tokenizer = make_tokenizer(bos=True)
        assert texts(tokenizer, Encoder(tokenizer)(Record([USER])))[0] == "<|user|>hi<|assistant|>"

    def test_what_follows_the_end_of_the_turn_is_cut_off(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        encoder = Encoder(
            template(
                tokenizer,
                "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<eos>\n{% endfor %}"
                "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
            )
        )
        assert texts(tokenizer, encoder(Record([USER], ([GOOD],)))) == (
            "<|user|>\nhi<eos>\n<|assistant|>\n",
            ["hello<eos>"],
        )

    def test_a_turn_that_ends_in_another_special_token_gets_no_eos(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        encoder = Encoder(
            template(
                tokenizer,
                "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|system|>\n{% endfor %}"
                "{% if add_generation_prompt %}<|assistant|>{% endif %}",
            )
        )
        assert texts(tokenizer, encoder(Record([USER], ([GOOD],))))[1] == ["hello<|system|>"]

    def test_a_template_without_end_of_turn_gets_eos(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        encoder = Encoder(
            template(
                tokenizer,
                "{% for m in messages %}{{ '\n' + m.role }}: {{ m.content }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}",
            )
        )
        encoded = encoder(Record([USER], ([GOOD], [BAD])))
        assert texts(tokenizer, encoded) == ("\nuser: hi\nassistant:", [" hello<eos>", " go<eos>"])
        assert encoder.cut_prompts == 0

    def test_a_template_that_opens_a_thought_is_cut_at_the_common_prefix_and_counted(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        encoder = Encoder(
            template(
                tokenizer,
                "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
                "{% if add_generation_prompt %}<|assistant|>[think]{% endif %}",
            )
        )
        encoded = encoder(Record([USER], ([GOOD], [BAD])))
        assert texts(tokenizer, encoded) == (
            "<|user|>hi<eos><|assistant|>",
            ["hello<eos>", "go<eos>"],
        )
        assert encoder.cut_prompts == 1

    def test_a_prompt_that_ends_in_the_assistants_words_is_gone_on_with(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        turns = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        encoder = Encoder(template(tokenizer, turns + "{% if add_generation_prompt %}!{% endif %}"))
        assert texts(tokenizer, encoder(Record([USER, GOOD])))[0] == "<|user|>hi<|assistant|>hello"
        encoded = encoder(Record([USER, GOOD], ([BAD],)))
        assert texts(tokenizer, encoded) == ("<|user|>hi<|assistant|>hello", ["go<eos>"])

    def test_a_template_without_generation_prompt_is_refused(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        encoder = Encoder(template(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}"))
        with pytest.raises(
            ConfigurationError, match=r"has no generation prompt.*add_generation_prompt"
        ):
            encoder(Record([USER]))

    def test_messages_without_a_template_are_refused(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        tokenizer.chat_template = None
        with pytest.raises(ConfigurationError, match="has no chat template"):
            Encoder(tokenizer)(Record([USER]))

    def test_messages_that_the_template_refuses_are_invalid(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        encoder = Encoder(template(tokenizer, "{{ raise_exception('roles must alternate') }}"))
        with pytest.raises(
            InvalidRowError,
            match=r"chat template refuses the messages: roles must alternate \(roles: \['user'\]",
        ):
            encoder(Record([USER]))


class TestLimits:
    def encode(self, tokenizer: PreTrainedTokenizerFast, **options: Any) -> tuple[str, list[str]]:
        return texts(tokenizer, Encoder(tokenizer, **options)(Record("abcdef", ("uvwxyz", "u"))))

    def test_within_the_limits_nothing_is_cut(self, tokenizer: PreTrainedTokenizerFast) -> None:
        whole = ("abcdef", ["uvwxyz<eos>", "u<eos>"])
        limits = {"max_prompt_length": 6, "max_completion_length": 7}
        for too_long in ("drop", "truncate_prompt", "truncate"):
            assert self.encode(tokenizer, **limits, too_long=too_long) == whole

    def test_prompts_are_cut_from_the_left_and_completions_from_the_right(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        limits = {"max_prompt_length": 4, "max_completion_length": 3, "too_long": "truncate"}
        assert self.encode(tokenizer, **limits) == ("cdef", ["uvw", "u<eos>"])
        assert self.encode(tokenizer, **limits, cut_prompt="end")[0] == "abcd"

    def test_prompts_alone_are_cut_where_answers_may_not_be(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        cut = self.encode(tokenizer, max_prompt_length=4, too_long="truncate_prompt")
        assert cut == ("cdef", ["uvwxyz<eos>", "u<eos>"])
        with pytest.raises(TooLongError, match="completion too long"):
            self.encode(tokenizer, max_completion_length=6, too_long="truncate_prompt")

    def test_the_end_of_a_conversations_prompt_stays(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        options: dict[str, Any] = {"too_long": "truncate", "cut_prompt": "end"}
        encoder = Encoder(tokenizer, max_prompt_length=2, **options)
        with pytest.raises(ConfigurationError, match="end of a conversation's prompt, which opens"):
            encoder(Record([USER], ([GOOD],)))
        assert Encoder(tokenizer, max_prompt_length=99, **options)(Record([USER])).cut == ()

    def test_bos_survives_the_cut(self) -> None:
        cut = self.encode(make_tokenizer(bos=True), max_prompt_length=4, too_long="truncate")
        assert cut[0] == "<bos>def"

    def test_too_long_says_how_long(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(TooLongError, match="prompt too long: 6 tokens, max_prompt_length is 5"):
            self.encode(tokenizer, max_prompt_length=5)
        with pytest.raises(
            TooLongError, match="completion too long: 7 tokens, max_completion_length is 6"
        ):
            self.encode(tokenizer, max_completion_length=6)
