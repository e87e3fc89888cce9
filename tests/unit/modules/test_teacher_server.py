"""A teacher behind a real HTTP server: its log-probs are those of its model, and what it can't tell is refused."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lit_rlhf.cli import main
from lit_rlhf.errors import ConfigurationError, ServiceError
from lit_rlhf.http import Endpoint
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import (
    BestOfNPolicyModule,
    DistillationPolicyModule,
    NashMDPolicyModule,
    REINFORCEPolicyModule,
    TeacherModel,
    TeacherServer,
    XPOPolicyModule,
)
from lit_rlhf.objectives import FixedKL
from lit_rlhf.rewards import NoReward
from lit_rlhf.rollout import Sampling
from lit_rlhf.testing import tiny_prompts, write_jsonl, write_tiny_model
from lit_rlhf.tokenizers import load_tokenizer
from tests.loopback import Answer, Loopback, Request, serving
from tests.reference.models import plain_model
from tests.tolerances import FP32_MODEL
from tests.unit.modules.one_iteration import build, full_batch, iterate, parameters_of
from tests.unit.rollout.real_vllm import serving_vllm

SAMPLING = Sampling(max_new_tokens=6)


class Served:
    """What `vllm serve` answers, of a model in this process."""

    def __init__(self, model_dir: Path) -> None:
        self.model, self.tokenizer = plain_model(model_dir), load_tokenizer(str(model_dir))
        self.change: Callable[[Any], Any] = lambda answer: answer
        self.delay = 0.0

    def __call__(self, asked: Request) -> Answer:
        if asked.path == "/v1/models":
            return Answer({"data": [{"id": "the teacher"}]})
        assert asked.path == "/v1/completions"
        assert asked.body["model"] == "the teacher"
        assert asked.body["prompt_logprobs"] == 0
        ids = torch.tensor([asked.body["prompt"]])
        with torch.no_grad():
            logprobs = self.model(input_ids=ids).logits[0].log_softmax(-1)
        told: list[Any] = [None]
        for at, token in enumerate(ids[0, 1:].tolist()):
            word = self.tokenizer.decode([token])
            place = {"logprob": float(logprobs[at, token]), "rank": 1, "decoded_token": word}
            told.append({str(token): place})
        answer = self.change({"choices": [{"text": "x", "prompt_logprobs": told}]})
        return Answer(answer, delay=self.delay)


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("teacher"), seed=5, hidden_size=48)


@pytest.fixture
def served(teacher_dir: Path) -> Served:
    return Served(teacher_dir)


@pytest.fixture
def server(served: Served) -> Iterator[Loopback]:
    with serving(served) as loopback:
        yield loopback


def teacher_at(server: Loopback) -> TeacherServer:
    return TeacherServer(Endpoint(server.url, concurrency=3, retries=1, backoff=0.01))


def student(model_dir: Path, teacher: Any, **options: Any) -> Any:
    options = {"kl": FixedKL(1.0), "sampling": SAMPLING, "num_samples": 2} | options
    spec = ModelSpec(name=str(model_dir), lora=options.pop("lora", None))
    return REINFORCEPolicyModule(spec, NoReward(), reference=teacher, **options)


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=2)], ids=["full", "lora"])
def test_it_is_the_model_that_stands_there(
    tiny_model_dir: Path,
    teacher_dir: Path,
    served: Served,
    server: Loopback,
    lora: LoraSpec | None,
) -> None:
    served.delay = 0.2  # so that requests meet on a busy machine, too
    batch = full_batch(tiny_model_dir)
    here = TeacherModel(ModelSpec(name=str(teacher_dir)))
    modules = [build(student(tiny_model_dir, t, lora=lora)) for t in (teacher_at(server), here)]
    found, expected = (module.collect(batch)[0] for module in modules)
    assert_close(found.completions.tokens, expected.completions.tokens)
    assert_close(found.ref_logprobs, expected.ref_logprobs, **FP32_MODEL)
    assert float(found.ref_logprobs[~found.response_mask].abs().sum()) == 0
    assert len(server.requests) == 2 + 12  # its name, a text, and each completion
    assert server.most > 1
    assert not [name for name in modules[0].state_dict() if "reference" in name]


def test_a_step_is_that_of_the_teacher_loaded_here(
    tiny_model_dir: Path, teacher_dir: Path, server: Loopback
) -> None:
    """Whose optimum `lit-rlhf verify` has: REINFORCE held to a teacher."""
    steps, logged = [], []
    for teacher in (teacher_at(server), TeacherModel(ModelSpec(name=str(teacher_dir)))):
        module = build(student(tiny_model_dir, teacher))
        before = parameters_of(module)
        logged.append(iterate(module, full_batch(tiny_model_dir), lr=1.0))
        steps.append(parameters_of(module) - before)
    assert_close(steps[0], steps[1], **FP32_MODEL)
    assert float(steps[0].abs().max()) > 0.01
    kl = [each["train/objective/kl"] for each in logged]
    assert kl[0] == pytest.approx(kl[1], rel=1e-5)
    assert kl[0] > 1


def test_a_fit_of_the_command_line(
    tiny_model_dir: Path, server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("prompts.jsonl"), tiny_prompts(8))
    words = f"""fit -c policy/rloo_lora -c overlays/tiny --run_dir run --trainer.limit_train_batches 1
        --model.reward NoReward --model.kl.coef 1.0 --model.reference TeacherServer --model.sampling.max_new_tokens 4
        --model.reference.endpoint.url {server.url} --model.backbone.name {tiny_model_dir}
        --data.tokenizer {tiny_model_dir} --data.train.path prompts.jsonl"""
    main(words.split())
    assert len(server.requests) > 10
    assert "objective/kl" in Path("run/metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda answer: {"error": "no"}, r"prompt_logprobs.*'error'.*vllm serve"),
        (lambda answer: {"choices": [{"text": "x"}]}, r"prompt_logprobs.*vllm serve"),
        (lambda answer: _with(answer, logprob=None), "prompt_logprobs"),
        (lambda answer: _with(answer, logprob="nan"), "prompt_logprobs"),
        (lambda answer: _with(answer, decoded_token="zebra"), "another vocabulary.*'zebra' to it"),
    ],
)
def test_what_is_no_teacher_is_refused_at_the_start(
    tiny_model_dir: Path, server: Loopback, served: Served, change: Any, said: str
) -> None:
    served.change = change
    with pytest.raises(ConfigurationError, match=f"(?s)The teacher at http.*{said}"):
        build(student(tiny_model_dir, teacher_at(server)))


def _with(answer: Any, **fields: Any) -> Any:
    for place in answer["choices"][0]["prompt_logprobs"][1:]:
        next(iter(place.values())).update(fields)
    return answer


def test_a_server_that_is_not_there(tiny_model_dir: Path) -> None:
    teacher = TeacherServer(Endpoint("http://127.0.0.1:9"), "name")
    with pytest.raises(ConfigurationError, match=r"teacher at http://127.0.0.1:9 can't be asked"):
        build(student(tiny_model_dir, teacher))


@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_vllm_itself(tmp_path: Path) -> None:
    """Heads as wide as vLLM's attention on CPU wants them."""
    own, other = (
        write_tiny_model(tmp_path / str(seed), seed=seed, hidden_size=128, head_dim=32)
        for seed in (0, 5)
    )
    here = build(student(own, TeacherModel(ModelSpec(name=str(other)))))
    with serving_vllm(other, tmp_path, options=()) as (server,):
        teacher = TeacherServer(Endpoint(server.url))
        found = build(student(own, teacher)).collect(full_batch(own))[0]
    expected = here.collect(full_batch(own))[0]
    assert teacher.model_name == str(other)
    assert_close(found.completions.tokens, expected.completions.tokens)
    assert_close(found.ref_logprobs, expected.ref_logprobs, rtol=0, atol=2e-4)


def test_an_answer_that_breaks_off_is_asked_again_and_a_wrong_one_ends_the_run(
    tiny_model_dir: Path, served: Served
) -> None:
    cut: list[int] = []

    def answer(asked: Request) -> Answer:
        cut.append(1)
        return Answer({"choices": []}, cut=True) if len(cut) == 5 else served(asked)

    with serving(answer) as server:
        module = build(student(tiny_model_dir, teacher_at(server)))
        batch = full_batch(tiny_model_dir)
        found = module.collect(batch)[0]
        assert len(server.requests) == 2 + 12 + 1
        assert math.isfinite(float(found.ref_logprobs.sum()))
        served.change = lambda told: {"choices": []}
        with pytest.raises(ServiceError, match=r"log-probs of \d+ tokens.*answered"):
            module.collect(batch)


def test_what_takes_more_than_log_probs_is_refused_at_once(tiny_model_dir: Path) -> None:
    spec, teacher = ModelSpec(name=str(tiny_model_dir)), TeacherServer(Endpoint("http://there"))
    with pytest.raises(ConfigurationError, match=r"^Distill.*whole distributions.*REINFORCE"):
        DistillationPolicyModule(spec, teacher=teacher)
    for kind in (NashMDPolicyModule, XPOPolicyModule, BestOfNPolicyModule):
        with pytest.raises(ConfigurationError, match=f"^{kind.__name__} needs.*TeacherModel"):
            kind(spec, NoReward(), reference=teacher)
    with pytest.raises(ConfigurationError, match=r"temperature=0.8.*temperature 1.*1\.0"):
        student(tiny_model_dir, teacher, sampling=Sampling(temperature=0.8))
