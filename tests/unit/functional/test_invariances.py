"""What holds for every function of token batches: padding, row order, empty rows and devices change nothing."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf import functional as F, objectives as o
from tests.reference.batches import LENGTHS, ragged, ragged_mask, widened
from tests.reference.preference_stats import concrete
from tests.tolerances import FP32, FP64

Inputs = dict[str, Tensor]
NAMES = (
    "logprobs",
    "old_logprobs",
    "ref_logprobs",
    "values",
    "old_values",
    "rewards",
    "advantages",
    "mask",
)


def _kl_loss(name: str, x: Inputs) -> Tensor:
    loss: o.KLLoss = getattr(o, name)()
    return loss(x["logprobs"], x["old_logprobs"], x["ref_logprobs"], x["mask"])


def _surrogate(name: str, x: Inputs) -> Tensor:
    surrogate: o.Surrogate = getattr(o, name)()
    return surrogate(x["logprobs"], x["old_logprobs"], x["advantages"], x["mask"]).loss


def _importance(name: str, x: Inputs) -> Tensor:
    correction: o.ImportanceCorrection = getattr(o, name)()
    return correction(x["logprobs"], x["old_logprobs"], x["mask"])


# Per token: (N, T). Those without a mask of their own are looked at where it is set.
TOKENWISE: dict[str, Callable[[Inputs], Tensor]] = {
    "whiten": lambda x: F.whiten(x["rewards"], x["mask"]),
    "gae advantages": lambda x: F.gae(x["rewards"], x["values"], x["mask"]).advantages,
    "gae returns": lambda x: F.gae(x["rewards"], x["values"], x["mask"]).returns,
    "discounted returns": lambda x: F.discounted_returns(x["rewards"], x["mask"], 0.9),
    "spread": lambda x: F.spread_over_tokens(x["scores"], x["mask"]),
    "kl shaped rewards": lambda x: F.kl_shaped_rewards(
        x["scores"], x["old_logprobs"], x["ref_logprobs"], x["mask"], 0.1
    ),
    "place at end": lambda x: F.place_at_end(x["scores"], x["mask"]),
    **{f"KL loss {name}": partial(_kl_loss, name) for name in sorted(concrete(o.KLLoss))},
    "approx kl": lambda x: F.approx_kl(x["logprobs"], x["old_logprobs"], x["mask"]),
    "token ratio": lambda x: F.token_ratio(x["logprobs"], x["old_logprobs"], x["mask"]),
    "prefix ratio": lambda x: F.prefix_ratio(x["logprobs"], x["old_logprobs"], x["mask"]),
    "sequence ratio": lambda x: F.sequence_ratio(x["logprobs"], x["old_logprobs"], x["mask"]),
    **{f"surrogate {name}": partial(_surrogate, name) for name in sorted(concrete(o.Surrogate))},
    "value loss": lambda x: F.clipped_value_loss(x["values"], x["old_values"], x["rewards"]),
    **{
        f"importance {name}": partial(_importance, name)
        for name in sorted(concrete(o.ImportanceCorrection))
    },
}
# Per sequence: (N,).
ROWWISE: dict[str, Callable[[Inputs], Tensor]] = {
    "masked sum": lambda x: F.masked_sum(x["rewards"], x["mask"], dim=-1),
    "masked mean": lambda x: F.masked_mean(x["rewards"], x["mask"], dim=-1),
    "penalized scores": lambda x: F.kl_penalized_scores(
        x["scores"], x["old_logprobs"], x["ref_logprobs"], x["mask"], 0.1
    ),
}
ALL = TOKENWISE | ROWWISE


def _inputs(garbage: float = float("nan")) -> Inputs:
    mask = ragged_mask()
    inputs = {name: ragged(mask, seed=i, garbage=garbage) for i, name in enumerate(NAMES)}
    return inputs | {
        "mask": mask,
        "scores": torch.linspace(-1, 2, len(LENGTHS), dtype=torch.float64),
    }


def _kept(name: str, inputs: Inputs) -> Tensor:
    out = ALL[name](inputs)
    return out[inputs["mask"]] if name in TOKENWISE else out


@pytest.mark.parametrize("name", ALL)
def test_columns_of_garbage_change_nothing(name: str) -> None:
    inputs = _inputs()
    wide = {key: widened(value) if value.dim() == 2 else value for key, value in inputs.items()}
    # Exact, but for reductions of a whole row, which sum in another order when the row is wider.
    assert_close(_kept(name, wide), _kept(name, inputs), **FP64)


@pytest.mark.parametrize("garbage", [0.0, 1e6, float("inf")])
@pytest.mark.parametrize("name", ALL)
def test_what_stands_in_the_padding_is_never_read(name: str, garbage: float) -> None:
    assert torch.equal(_kept(name, _inputs(garbage)), _kept(name, _inputs()))


@pytest.mark.parametrize("name", ALL)
def test_rows_do_not_see_their_order(name: str) -> None:
    inputs = _inputs()
    order = torch.tensor([3, 5, 0, 2, 4, 1])
    permuted = {key: value[order] for key, value in inputs.items()}
    got, expected = ALL[name](permuted), ALL[name](inputs)[order]
    assert_close(got, expected, **FP64, equal_nan=True)


@pytest.mark.parametrize("name", ALL)
def test_batches_without_any_token_are_finite(name: str) -> None:
    inputs = {key: value[3:4] for key, value in _inputs(0.0).items()}
    assert not inputs["mask"].any()
    assert torch.isfinite(ALL[name](inputs)).all()


@pytest.mark.parametrize("name", ALL)
def test_padding_gets_no_gradient(name: str) -> None:
    garbage = (
        1e3
        if name in {"value loss", *(name for name in ALL if name.startswith("surrogate"))}
        else float("nan")
    )
    inputs = _inputs(garbage)
    floats = [
        value.requires_grad_() for key, value in inputs.items() if key not in ("mask", "scores")
    ]
    out = _kept(name, inputs)
    if not out.requires_grad:
        return
    for value, grad in zip(
        floats, torch.autograd.grad(out.sum(), floats, allow_unused=True), strict=True
    ):
        if grad is not None:
            padding = grad[~inputs["mask"]]
            assert torch.equal(padding, torch.zeros_like(padding)), value.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_the_dtype_is_kept(name: str, dtype: torch.dtype) -> None:
    inputs = {key: value if key == "mask" else value.to(dtype) for key, value in _inputs().items()}
    got = _kept(name, inputs)
    assert got.dtype == dtype
    if dtype == torch.float32:
        assert_close(
            got.double(), _kept(name, _inputs() | {"scores": inputs["scores"].double()}), **FP32
        )


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_made_on_another_device(name: str) -> None:
    """The meta device raises on any mix, as a GPU would."""
    inputs = {key: value.to("meta") for key, value in _inputs().items()}
    assert ALL[name](inputs).device.type == "meta"
