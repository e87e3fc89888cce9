from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rlhf.cli import main
from lit_rlhf.errors import ConfigurationError, ServiceError
from lit_rlhf.judges import LocalJudge
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec, export_policy
from lit_rlhf.models.precision import default_device
from lit_rlhf.testing.models import write_tiny_model
from tests.tolerances import FP32

WORDS = {"yes": 1.0, "no": 0.0, "nob": 0.25}
CASES = [
    {"prompt": "how was it? ", "response": "they say it is great"},
    {"prompt": "and the film? ", "response": "poor"},
]
TEMPLATE = "{{ prompt }}{{ response }} good?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("judge") / "model", seed=3)


def slow_value(path: Path, question: str, chat: bool) -> float:
    """By transformers alone, a forward for each word, and each word's tokens one by one."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    reader = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    turns = [{"role": "user", "content": question}]
    text = (
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        if chat
        else question
    )
    prompt = tokenizer(text, add_special_tokens=not chat)["input_ids"]
    probs = {}
    for word in WORDS:
        joint = tokenizer(text + ("" if chat else " ") + word, add_special_tokens=not chat)
        ids = joint["input_ids"]
        with torch.no_grad():
            logprobs = reader(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        probs[word] = sum(float(logprobs[i - 1, ids[i]]) for i in range(len(prompt), len(ids)))
    likely = {word: 2.718281828459045**value for word, value in probs.items()}
    likely["no"] -= likely["nob"]  # an answer "nob" begins with "no" and isn't it
    return sum(likely[word] * WORDS[word] for word in WORDS) / sum(likely.values())


@pytest.mark.parametrize("chat", [False, True])
def test_it_equals_a_slow_reference(model: Path, chat: bool) -> None:
    backbone = Backbone.load(ModelSpec(name=str(model)), trainable=False)
    path = model
    if not chat:
        backbone.tokenizer.chat_template = None
    judge = LocalJudge.of(backbone, template=TEMPLATE, words=WORDS)
    found = judge.judge(CASES)
    wanted = [slow_value(path, f"{c['prompt']}{c['response']} good?", chat) for c in CASES]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), **FP32)
    lengths = [len(backbone.tokenizer(w, add_special_tokens=False)["input_ids"]) for w in WORDS]
    assert max(lengths) > 1  # else the test shows less than it says


def test_the_batch_changes_nothing(model: Path) -> None:
    spec = ModelSpec(name=str(model))
    alone = LocalJudge(spec, template=TEMPLATE, words=WORDS, batch_size=1)
    together = LocalJudge(spec, template=TEMPLATE, words=WORDS, batch_size=2)
    assert alone.judge(CASES) == pytest.approx(together.judge(CASES), abs=1e-6)


def test_a_cache_goes_by_the_weights_and_not_by_the_path(model: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(model)
    options = {"template": TEMPLATE, "words": WORDS, "cache": tmp_path / "answers"}
    for path, known in ((model, 0), (moved, 2), (write_tiny_model(tmp_path / "m", seed=4), 0)):
        judge = LocalJudge(ModelSpec(name=str(path)), **options)
        judge.judge(CASES)
        assert judge.tally.cached == known


def test_what_it_cannot_do_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"what a policy in training says changes"):
        LocalJudge(cache=tmp_path)
    with pytest.raises(ConfigurationError, match=r"LocalJudge has no model"):
        LocalJudge(template=TEMPLATE).judge(CASES)
    long = [{"prompt": "a" * 20_000, "response": "b"}]
    with pytest.raises(ConfigurationError, match=r"tokens, its answer up to 1; the model reads"):
        LocalJudge(ModelSpec(name=str(model)), template=TEMPLATE).judge(long)


def test_the_likeliest_answer_is_read_as_text(model: Path) -> None:
    """As transformers writes it; what it says can be read by a pattern of any letter, and by words it never says."""
    spec = ModelSpec(name=str(model))
    options: dict[str, Any] = {"template": TEMPLATE, "mode": "text", "max_new_tokens": 12}
    tokenizer = AutoTokenizer.from_pretrained(model)
    reader = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    said, lengths = [], []
    for case in CASES:
        turns = [{"role": "user", "content": f"{case['prompt']}{case['response']} good?"}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
        ids = ids["input_ids"] if not isinstance(ids, torch.Tensor) else ids
        out = reader.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        lengths.append(len(out))
        said.append(tokenizer.decode(out, skip_special_tokens=True))
    letters = {text[-1]: float(i + 1) for i, text in enumerate(said)}
    letters |= {"never-said": 9.0}
    judge = LocalJudge(spec, words=letters, pattern=r"(?s)(.)\Z", **options)
    assert judge.judge(CASES) == [letters[text[-1]] for text in said]
    assert judge.tally.completion_tokens == sum(lengths)
    silent = LocalJudge(spec, words={"never-said": 1, "nor this": 0}, failures="null", **options)
    assert silent.judge(CASES) == [None, None]
    assert silent.tally.failed == 2
    with pytest.raises(ServiceError, match="gave no verdict"):
        LocalJudge(spec, words={"never-said": 1, "nor this": 0}, **options).judge(CASES)


def test_an_adapter_on_the_base_of_the_policy(model: Path, tmp_path: Path) -> None:
    """What it says is that of the adapter on a model of its own, and the policy says the same as before."""
    trained = Backbone.load(ModelSpec(name=str(model), lora=LoraSpec(rank=2)))
    trained.add_adapter("policy")
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    export_policy(trained, tmp_path / "judge", merge=False)
    options: dict[str, Any] = {"template": TEMPLATE, "words": WORDS}
    spec = ModelSpec(name=str(model), adapter=str(tmp_path / "judge"), lora=LoraSpec(rank=2))
    wanted = LocalJudge(spec, **options).judge(CASES)
    policy = Backbone.load(ModelSpec(name=str(model), lora=LoraSpec(rank=4)))
    policy.add_adapter("policy")
    before = LocalJudge.of(policy, **options).judge(CASES)
    judge = LocalJudge(adapter=str(tmp_path / "judge"), cache=tmp_path / "answers", **options)
    judge.attach(policy)
    judge.attach(policy)
    assert policy.adapters.count("judge") == 1 if isinstance(policy.adapters, list) else True
    assert judge.judge(CASES) == pytest.approx(wanted, abs=1e-6)
    assert judge.judge(CASES) != pytest.approx(before, abs=1e-3)
    assert judge.tally.cached == 2
    assert LocalJudge.of(policy, **options).judge(CASES) == pytest.approx(before, abs=1e-6)


def test_modes_that_would_be_ignored_are_refused(model: Path) -> None:
    with pytest.raises(ConfigurationError, match="set mode: text"):
        LocalJudge(pattern=r"(\d)", template=TEMPLATE)
    with pytest.raises(ConfigurationError, match="leave backbone and role out"):
        LocalJudge(ModelSpec(name=str(model)), adapter="somewhere")
    with pytest.raises(ConfigurationError, match="logprobs or text"):
        LocalJudge(mode="words")  # type: ignore[arg-type]


def test_commands_put_it_where_they_compute(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, move = [], LocalJudge.to

    def told(judge: LocalJudge, device: torch.device) -> None:
        places.append(device)
        move(judge, device)

    monkeypatch.setattr(LocalJudge, "to", told)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "how was it? ", "chosen": "good", "rejected": "poor"}\n')
    judge = ["--judge", "LocalJudge", "--judge.backbone.name", str(model)]
    main(["label", str(pairs), "--output", str(tmp_path / "out.jsonl"), *judge])
    page = str(tmp_path / "page.html")
    main(["evaluate-reward", "--data", str(pairs), "--output", page, "--perturbed", "0", *judge])
    assert places == 2 * [default_device()]
