"""Log-probs and entropies against naive softmax, with their gradients, and what the chunked path must not do."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional import logits, logprobs
from lit_rlhf.functional.logprobs import chunked_logprobs, token_entropy, token_logprobs
from tests.tolerances import BF16, FP32, FP64

N, WIDTH, VOCABULARY = 7, 5, 11


def _problem(
    dtype: torch.dtype = torch.float64, n: int = N
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(n, WIDTH, generator=draw, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw, dtype=torch.float64)
    bias = torch.randn(VOCABULARY, generator=draw, dtype=torch.float64)
    tokens = torch.randint(0, VOCABULARY, (n,), generator=draw)
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), tokens


def _naive(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """All logits at once, in the dtype given."""
    logits = (
        hidden @ weight.T * logit_scale
        if bias is None
        else (hidden @ weight.T + bias) * logit_scale
    )
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    probs = torch.softmax(logits / temperature, dim=-1)
    return probs[torch.arange(len(tokens)), tokens].log(), -(probs * probs.log()).sum(-1)


OPTIONS: dict[str, dict[str, float]] = {
    "plain": {},
    "tempered": {"temperature": 0.7},
    "capped": {"softcap": 2.0},
    "scaled": {"logit_scale": 0.3},
    "all": {"temperature": 1.3, "softcap": 3.0, "logit_scale": 1.7},
}


PATHS = ("weight", "fused", "callable")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled elsewhere, as it is written."""
    monkeypatch.setattr(logprobs, "fused", lambda function: function)
    monkeypatch.setattr(logits.Fused, "works", True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_token_logprobs_and_entropy_match_softmax(temperature: float, dtype: torch.dtype) -> None:
    logits = torch.randn(2, 3, VOCABULARY, dtype=torch.float64).to(dtype)
    tokens = torch.randint(0, VOCABULARY, (2, 3))
    probs = torch.softmax(logits.double() / temperature, -1)
    got, entropy = token_logprobs(logits, tokens, temperature), token_entropy(logits, temperature)
    assert (
        got.dtype == entropy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    )
    tolerance = FP64 if dtype == torch.float64 else FP32
    assert_close(got.double(), probs.gather(-1, tokens[..., None]).squeeze(-1).log(), **tolerance)
    assert_close(entropy.double(), -(probs * probs.log()).sum(-1), **tolerance)


@pytest.mark.parametrize("chunk_size", [None, 1, 3, N, 100])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_chunks_equal_the_whole(
    path: str,
    options: dict[str, float],
    chunk_size: int | None,
    uncompiled: None,
) -> None:
    hidden, weight, _, tokens = _problem()
    head = (lambda states: states @ weight.T) if path == "callable" else weight
    extra = {"chunk_size": chunk_size, "fuse": path == "fused"}
    got = chunked_logprobs(hidden, head, tokens, with_entropy=True, **extra, **options)
    logprobs, entropy = _naive(hidden, weight, None, tokens, **options)
    assert_close(got.logprobs, logprobs, **FP64)
    assert_close(got.entropy, entropy, **FP64)


def test_entropy_is_optional() -> None:
    hidden, weight, _, tokens = _problem()
    assert chunked_logprobs(hidden, weight, tokens).entropy is None
    assert chunked_logprobs(hidden, lambda h: h @ weight.T, tokens).entropy is None


@pytest.mark.parametrize("entropy_grad", [False, True])
@pytest.mark.parametrize("trained", ["hidden", "head", "both"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_gradients_equal_those_of_the_whole(
    path: str,
    options: dict[str, float],
    trained: str,
    entropy_grad: bool,
    uncompiled: None,
) -> None:
    hidden, weight, bias, tokens = _problem()
    leaves = {"hidden": [hidden], "head": [weight, bias], "both": [hidden, weight, bias]}[trained]
    for leaf in leaves:
        leaf.requires_grad_()
    weights = torch.randn(2, N, dtype=torch.float64)

    def total(logprobs: Tensor, entropy: Tensor) -> Tensor:
        return (weights[0] * logprobs).sum() + (
            weights[1] * (entropy if entropy_grad else entropy.detach())
        ).sum()

    expected = torch.autograd.grad(total(*_naive(hidden, weight, bias, tokens, **options)), leaves)
    head: Tensor | Callable[[Tensor], Tensor] = (
        (lambda h: h @ weight.T + bias) if path == "callable" else weight
    )
    extra = {} if path == "callable" else {"bias": bias, "fuse": path == "fused"}
    out = chunked_logprobs(
        hidden,
        head,
        tokens,
        with_entropy=True,
        entropy_grad=entropy_grad,
        chunk_size=3,
        **extra,
        **options,
    )
    assert out.entropy is not None
    got = torch.autograd.grad(total(out.logprobs, out.entropy), leaves)
    assert_close(got, expected, **FP64)


@pytest.mark.parametrize("entropy_grad", [False, True])
@pytest.mark.parametrize("trained", ["hidden", "both"])
@pytest.mark.parametrize("path", PATHS)
def test_tokens_of_logit_minus_infinity_are_as_if_they_were_not_there(
    path: str, trained: str, entropy_grad: bool, uncompiled: None
) -> None:
    hidden, weight, bias, tokens = _problem()
    tokens %= VOCABULARY - 2  # which never come
    bias[-2:] = -torch.inf
    leaves = [hidden, weight] if trained == "both" else [hidden]
    for leaf in leaves:
        leaf.requires_grad_()
    weights = torch.randn(2, N, dtype=torch.float64)

    def gradients(logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, ...]:
        counted = entropy if entropy_grad else entropy.detach()
        return torch.autograd.grad((weights[0] * logprobs + weights[1] * counted).sum(), leaves)

    expected = _naive(hidden, weight[:-2], bias[:-2], tokens)
    head: Any = (lambda h: h @ weight.T + bias) if path == "callable" else weight
    extra = {} if path == "callable" else {"bias": bias, "fuse": path == "fused"}
    asked = {"with_entropy": True, "entropy_grad": entropy_grad, "chunk_size": 3}
    got = chunked_logprobs(hidden, head, tokens, **asked, **extra)
    assert got.entropy is not None
    assert_close((got.logprobs, got.entropy), expected, **FP64)
    assert_close(gradients(got.logprobs, got.entropy), gradients(*expected), **FP64)


@pytest.mark.parametrize("entropy_grad", [False, True])
@pytest.mark.parametrize("head_trains", [False, True])
def test_gradcheck(head_trains: bool, entropy_grad: bool) -> None:
    hidden, weight, bias, tokens = _problem(n=4)
    weight.requires_grad_(head_trains)
    bias.requires_grad_(head_trains)

    def run(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        out = chunked_logprobs(
            h,
            w,
            tokens,
            bias=b,
            temperature=0.8,
            softcap=2.0,
            with_entropy=True,
            entropy_grad=entropy_grad,
            chunk_size=3,
        )
        assert out.entropy is not None
        return (out.logprobs, out.entropy) if entropy_grad else (out.logprobs,)

    assert torch.autograd.gradcheck(run, (hidden.requires_grad_(), weight, bias))


def test_the_entropy_alone_has_a_gradient_too() -> None:
    hidden, weight, _, tokens = _problem()
    hidden.requires_grad_()
    out = chunked_logprobs(
        hidden, weight, tokens, with_entropy=True, entropy_grad=True, chunk_size=2
    )
    (got,) = torch.autograd.grad(out.entropy.sum(), hidden)
    (expected,) = torch.autograd.grad(_naive(hidden, weight, None, tokens)[1].sum(), hidden)
    assert_close(got, expected, **FP64)


def test_a_detached_entropy_is_detached_on_every_path() -> None:
    hidden, weight, _, tokens = _problem()
    hidden.requires_grad_()
    for head in (weight, weight.clone().requires_grad_(), lambda h: h @ weight.T):
        out = chunked_logprobs(hidden, head, tokens, with_entropy=True)
        assert out.logprobs.requires_grad
        assert not out.entropy.requires_grad


@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trained"])
def test_bfloat16_products_and_float32_softmax(trains: bool) -> None:
    hidden, weight, _, tokens = _problem(torch.bfloat16)
    hidden.requires_grad_()
    weight.requires_grad_(trains)
    out = chunked_logprobs(hidden, weight, tokens, with_entropy=True, chunk_size=3)
    assert out.logprobs.dtype == torch.float32
    logits = hidden.detach() @ weight.detach().T  # rounded to bfloat16, as a layer would give them
    assert_close(out.logprobs, token_logprobs(logits, tokens), **FP32)
    assert_close(out.entropy, token_entropy(logits), **FP32)
    out.logprobs.sum().backward()
    exact = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight)]
    _naive(*exact, None, tokens)[0].sum().backward()
    assert hidden.grad.dtype == torch.bfloat16
    assert_close(hidden.grad.double(), exact[0].grad, rtol=5e-2, atol=5e-2)
    if trains:
        assert weight.grad.dtype == torch.bfloat16
        assert_close(weight.grad.double(), exact[1].grad, rtol=5e-2, atol=5e-2)


def test_autocast_computes_in_its_dtype_and_returns_gradients_in_the_parameters() -> None:
    hidden, weight, _, tokens = _problem(torch.float32)
    hidden.requires_grad_()
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = chunked_logprobs(hidden, weight, tokens, chunk_size=3)
        out.logprobs.sum().backward()
    logits = hidden.detach().bfloat16() @ weight.detach().bfloat16().T
    assert_close(out.logprobs, token_logprobs(logits, tokens), **FP32)
    exact = [leaf.detach().clone().requires_grad_() for leaf in (hidden, weight)]
    _naive(*exact, None, tokens)[0].sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32
    assert_close(hidden.grad, exact[0].grad, rtol=5e-2, atol=5e-2)
    assert_close(weight.grad, exact[1].grad, rtol=5e-2, atol=5e-2)


def test_hidden_states_of_another_dtype_follow_the_weight() -> None:
    hidden, weight, _, tokens = _problem(torch.float32)
    out = chunked_logprobs(hidden.bfloat16(), weight, tokens)
    assert_close(out.logprobs, _naive(hidden.bfloat16().float(), weight, None, tokens)[0], **BF16)
    assert out.logprobs.dtype == torch.float32


class _Watch(TorchDispatchMode):
    """Counts matrix products and finds the largest result of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("kind", ["frozen", "trained", "callable"])
def test_logits_of_the_whole_never_exist(kind: str) -> None:
    n, width, vocabulary, chunk = 64, 4, 50, 8
    hidden = torch.randn(n, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=kind == "trained")
    head = (lambda h: h @ weight.T) if kind == "callable" else weight
    tokens = torch.randint(0, vocabulary, (n,))
    with _Watch() as watch:
        out = chunked_logprobs(hidden, head, tokens, with_entropy=True, chunk_size=chunk)
        out.logprobs.sum().backward()
    assert watch.largest == chunk * vocabulary
    assert hidden.grad.abs().sum() > 0


def test_a_frozen_head_costs_no_products_in_the_backward_pass_and_gets_no_gradient() -> None:
    hidden, weight, _, tokens = _problem()
    hidden.requires_grad_()
    out = chunked_logprobs(hidden, weight, tokens, chunk_size=3)
    with _Watch() as watch:
        out.logprobs.sum().backward()
    assert watch.products == 0
    assert weight.grad is None


def test_no_gradient_costs_one_product_a_chunk() -> None:
    hidden, weight, _, tokens = _problem()
    hidden.requires_grad_()
    with torch.no_grad(), _Watch() as watch:
        out = chunked_logprobs(hidden, weight, tokens, chunk_size=N)
    assert watch.products == 1
    assert not out.logprobs.requires_grad


@pytest.mark.parametrize("callable_head", [False, True], ids=["weight", "callable"])
def test_no_tokens_give_no_logprobs_and_zero_gradients(callable_head: bool) -> None:
    layer = nn.Linear(WIDTH, VOCABULARY, bias=False)
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    head = layer if callable_head else layer.weight
    out = chunked_logprobs(hidden, head, torch.zeros(0, dtype=torch.int64), with_entropy=True)
    assert out.logprobs.shape == out.entropy.shape == (0,)
    out.logprobs.sum().backward()
    assert_close(layer.weight.grad, torch.zeros_like(layer.weight), **FP32)


def test_dropout_in_a_callable_is_the_same_in_both_passes() -> None:
    hidden, weight, _, tokens = _problem()
    hidden.requires_grad_()
    kept: list[Tensor] = []

    def head(states: Tensor) -> Tensor:
        kept.append(torch.nn.functional.dropout(torch.ones(VOCABULARY, dtype=torch.float64), 0.5))
        return states @ weight.T * kept[-1]

    out = chunked_logprobs(hidden, head, tokens, chunk_size=N)
    out.logprobs.sum().backward()
    assert len(kept) == 2
    assert torch.equal(kept[0], kept[1])


def test_the_meta_device_is_enough_for_shapes() -> None:
    hidden, weight, _, tokens = (tensor.to("meta") for tensor in _problem())
    hidden.requires_grad_()
    out = chunked_logprobs(hidden, weight, tokens, with_entropy=True, chunk_size=2)
    out.logprobs.sum().backward()
    assert hidden.grad.shape == hidden.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"temperature=0.0 must be above 0"),
        ({"temperature": float("nan")}, r"temperature=nan"),
        ({"softcap": -1.0}, r"softcap=-1.0 must be above 0"),
        ({"chunk_size": 0}, r"chunk_size=0 must be 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    hidden, weight, _, tokens = _problem()
    with pytest.raises(ConfigurationError, match=message):
        chunked_logprobs(hidden, weight, tokens, **options)


def test_a_bias_beside_a_callable_is_refused() -> None:
    hidden, weight, bias, tokens = _problem()
    with pytest.raises(ConfigurationError, match="bias belongs to a head given as a weight"):
        chunked_logprobs(hidden, lambda h: h @ weight.T, tokens, bias=bias)


COMPILED = """
import torch
from lit_rlhf.functional import logits
from lit_rlhf.functional.logprobs import chunked_logprobs
from tests.tolerances import FP32

assert logits.fused(logits.row_statistics) is not logits.row_statistics
for trains, dtype in ((False, torch.float32), (True, torch.bfloat16)):
    torch.manual_seed(0)
    hidden, weight = torch.randn(70, 16, dtype=dtype), torch.randn(300, 16, dtype=dtype)
    leaves = [hidden.requires_grad_(), weight.requires_grad_(trains)][: 1 + trains]
    found = []
    for fuse in (False, True):
        options = {"softcap": 30.0, "temperature": 0.7, "chunk_size": 32, "fuse": fuse}
        options |= {"with_entropy": True, "entropy_grad": trains}
        out = chunked_logprobs(hidden, weight, torch.arange(70), **options)
        total = out.logprobs.sum() + (out.entropy.sum() if trains else 0)
        found.append([out.logprobs, out.entropy, *torch.autograd.grad(total, leaves)])
    for plain, compiled in zip(*found, strict=True):
        rounding = {} if plain.dtype == torch.bfloat16 else FP32
        torch.testing.assert_close(compiled, plain, **rounding)
"""


def _both_paths(dtype: torch.dtype) -> list[list[Tensor]]:
    """Log-probs, entropies and gradients by single operators and fused."""
    found = []
    for fuse in (False, True):
        hidden, weight, bias, tokens = _problem(dtype)
        hidden.requires_grad_()
        options: dict[str, Any] = {"softcap": 3.0, "temperature": 0.7, "chunk_size": 4}
        out = chunked_logprobs(
            hidden, weight, tokens, bias=bias, with_entropy=True, fuse=fuse, **options
        )
        assert out.entropy is not None
        found.append([out.logprobs, out.entropy, *torch.autograd.grad(out.logprobs.sum(), hidden)])
    return found


@pytest.mark.slow
def test_what_is_compiled_equals_what_is_not() -> None:
    """In a process of its own, for tests check the types of each call, which no compiler looks through."""
    done = subprocess.run(
        [sys.executable, "-W", "error:.*can't be compiled", "-c", COMPILED],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def uncompilable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that compiles nothing."""

    def refuse(*args: Any) -> Any:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    monkeypatch.setattr(logits.Fused, "works", True)
    logits.fused.cache_clear()
    yield
    logits.fused.cache_clear()


def test_without_a_compiler_there_is_one_warning_and_the_same_numbers(uncompilable: None) -> None:
    with pytest.warns(
        UserWarning, match="can't be compiled here.*Failed to find C compiler"
    ) as told:
        plain, fused = _both_paths(torch.float64)
    assert sum("can't be compiled" in str(each.message) for each in told) == 1
    assert_close(fused, plain, **FP64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(_both_paths(torch.float64)[1], plain, **FP64)


def test_wrong_arguments_turn_no_compiler_off(uncompilable: None) -> None:
    hidden, weight, _, tokens = _problem()
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        chunked_logprobs(hidden, weight, tokens + 10_000, fuse=True)
    assert logits.Fused.works


SHORT = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("Triton Error: out of memory")]


@pytest.mark.parametrize("when", ["run", "compiled"])
@pytest.mark.parametrize("error", SHORT, ids=["torch", "driver"])
def test_memory_that_is_short_is_no_reason_to_fall_back(
    error: Exception, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails while it compiles is wrapped in an error of the compiler."""

    def exhaust(*args: Any) -> Any:
        raise error

    # Of another function, for tests check the types of each call, which no compiler looks through.
    compiled = torch.compile(lambda raw, *_: raw.exp(), backend=exhaust)
    made = logits.Fused(logits.row_statistics)
    made.compiled = exhaust if when == "run" else compiled
    monkeypatch.setattr(logits.Fused, "works", True)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        made(torch.ones(2, 3), torch.zeros(2).long(), logits.LogitShape())
    assert logits.Fused.works
