"""The tolerances of numeric tests, in one place: a test names what it compares, never a number of its own."""

FP32 = {"rtol": 1e-5, "atol": 1e-6}  # the same arithmetic in another order
FP32_MODEL = {"rtol": 1e-4, "atol": 1e-4}  # through a whole decoder
FP64 = {"rtol": 1e-10, "atol": 1e-12}
BF16 = {"rtol": 2e-2, "atol": 2e-2}  # eight bits of mantissa
PROCESSES = {
    "rtol": 0.0,
    "atol": 1e-5,
}  # parameters after a few steps, trained by one process or by two


def one_apart(metric: str) -> float:
    """How far two runs of the same arithmetic may differ in a metric, absolutely: shares jump, all else is smooth.

    A share counts what lies beyond a threshold, or which of two is the larger: where one value lies on the boundary,
    rounding decides, and it differs by one of its count. The smallest count in our runs is 20 tokens or pairs.
    """
    shares = ("clipfrac", "accuracy", "accuracies", "clip_ratio", "clipped_ratio")
    return 1 / 20 if any(share in metric for share in shares) else 1e-4
