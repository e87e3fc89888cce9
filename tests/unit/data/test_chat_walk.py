"""Kinds of chat templates x kinds of conversations: the tokenizer's own rendering, one start, one end, nothing lost."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data.encoding import Encoder
from lit_rlhf.data.records import InvalidRowError, Record
from lit_rlhf.testing import make_tokenizer

SPECIALS = [
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|start|>",
    "<|end_header|>",
    "<|eot|>",
    "<|User|>",
    "<|Bot|>",
]
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama-2": (
        "{% if messages[0].role == 'system' %}{% set head = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set turns = messages[1:] %}{% else %}{% set head = '' %}{% set turns = messages %}{% endif %}"
        "{% for m in turns %}{% if m.role == 'user' %}<bos>[INST] "
        "{{ (head if loop.first else '') + m.content | trim }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content | trim }} <eos>{% else %}{{ raise_exception('unknown role') }}"
        "{% endif %}{% endfor %}"
    ),
    "llama-3": (
        "{{ bos_token }}{% if tools %}<|start|>system<|end_header|>\n\n{{ tools | tojson }}<|eot|>{% endif %}"
        "{% for m in messages %}<|start|>{{ m.role }}<|end_header|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|end_header|>\n\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% if tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
        "{% else %}{{ m.content }}\n\n{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "qwen-3": (
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% set thought = m.reasoning_content or '' %}{% set text = m.content %}"
        "{% if '</think>' in text %}{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ text }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "r1": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<|Bot|>{{ m.content.split('</think>')[-1] }}<eos>{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|Bot|><think>\n{% endif %}"
    ),
    "deepseek": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<|Bot|>{{ m.content }}{{ eos_token }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Bot|>{% endif %}"
    ),
}


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASK, TELL = turn("user", "what is it?"), turn("assistant", "the answer")
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]] = {
    "single": ([ASK], [TELL], {}),
    "multi-turn": ([ASK, turn("assistant", "this"), turn("user", "and then?")], [TELL], {}),
    "system": ([turn("system", "be kind"), ASK], [TELL], {}),
    "prefilled": ([ASK, turn("assistant", "the ans")], [turn("assistant", "wer")], {}),
    "tools": ([ASK], [TELL], {"tools": [TOOL]}),
    "reasoning": ([ASK], [turn("assistant", "<think>\nso\n</think>\n\nthe answer")], {}),
}
REFUSED = {
    ("r1", "reasoning"): "leaves out text of the answer",
    ("gemma", "system"): "refuses the messages",
    **{
        (name, "tools"): "tools would be lost"
        for name in TEMPLATES
        if name not in ("llama-3", "mistral", "qwen-3")
    },
}
CUT = {"r1"}  # its generation prompt opens a thought that the rendered answer lacks
END = {
    "chatml": "<|im_end|>",
    "qwen-3": "<|im_end|>",
    "llama-3": "<|eot|>",
    "gemma": "<end_of_turn>",
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = make_tokenizer(bos=True)
    made.add_special_tokens(
        {"additional_special_tokens": SPECIALS}, replace_extra_special_tokens=False
    )
    return made


def own_ids(
    tokenizer: Any, turns: list[dict[str, Any]], options: dict[str, Any], **more: Any
) -> list[int]:
    return list(tokenizer.apply_chat_template(turns, **options, **more)["input_ids"])


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation(name: str, kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    prompt, answer, options = CONVERSATIONS[kind]
    encoder = Encoder(tokenizer)
    record = Record(prompt, (answer,), template=options)
    if (name, kind) in REFUSED:
        with pytest.raises(InvalidRowError, match=REFUSED[name, kind]):
            encoder(record)
        return
    encoded = encoder(record)
    goes_on = prompt[-1]["role"] == "assistant"
    whole_turns = [*prompt, *answer]
    if goes_on:
        whole_turns = [
            *prompt[:-1],
            turn("assistant", prompt[-1]["content"] + answer[0]["content"]),
        ]
    whole = own_ids(tokenizer, whole_turns, options)
    start = own_ids(
        tokenizer,
        prompt,
        options,
        add_generation_prompt=not goes_on,
        continue_final_message=goes_on,
    )
    found = [*encoded.prompt, *encoded.completions[0]]
    assert whole[: len(found)] == found
    assert not tokenizer.decode(whole[len(found) :]).strip()  # the line break behind a turn
    if name in CUT and not goes_on:
        assert encoder.cut_prompts == 1 and start[: len(encoded.prompt)] == encoded.prompt
    else:
        assert encoder.cut_prompts == 0 and start == encoded.prompt
        assert Encoder(tokenizer)(Record(prompt, template=options)).prompt == start
    starts = (
        2 if (name, kind) == ("llama-2", "multi-turn") else 0 if name in ("chatml", "qwen-3") else 1
    )
    assert found.count(tokenizer.bos_token_id) == starts
    end = tokenizer.convert_tokens_to_ids(END.get(name, "<eos>"))
    assert encoded.completions[0].count(end) == 1 and encoded.completions[0][-1] == end
    text = "".join(tokenizer.decode(found).split())
    assert "".join(answer[0]["content"].split()) in text


@pytest.mark.parametrize("name", ["llama-3", "mistral", "qwen-3"])
def test_options_reach_the_template(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    prompt, answer, options = CONVERSATIONS["tools"]
    encoded = Encoder(tokenizer)(Record(prompt, (answer,), template=options))
    assert '"weather"' in tokenizer.decode(encoded.prompt)
