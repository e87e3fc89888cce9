"""The tolerances of numeric tests, in one place: a test names what it compares, never a number of its own."""

FP32 = {"rtol": 1e-5, "atol": 1e-6}  # the same arithmetic in another order
FP32_MODEL = {"rtol": 1e-4, "atol": 1e-4}  # through a whole decoder
FP64 = {"rtol": 1e-10, "atol": 1e-12}
LIMITS = {"rtol": 1e-4, "atol": 1e-5}  # a quotient of float64 a step of 1e-7 before its limit
BF16 = {"rtol": 2e-2, "atol": 2e-2}  # eight bits of mantissa
PROCESSES = {
    "rtol": 0.0,
    "atol": 1e-5,
}  # parameters after a few steps, trained by one process or by two
METRICS = {"rel_tol": 1e-3, "abs_tol": 1e-4}  # of runs by one process or by two, for math.isclose
PRECISIONS = {
    # Of the first loss of a run, which may be a sum that cancels, hence the absolute term; and of its gradient's norm.
    # 32-true and 64-true: float32 in another order. The mixed ones round products to 8 and 11 bits, 2e-3 and 2.4e-4 of
    # each; through two layers, a head and back that is at most ten times as much.
    "32-true": {"rel": 1e-5, "abs": 2e-6, "norm": 1e-4},
    "64-true": {"rel": 1e-5, "abs": 2e-6, "norm": 1e-4},
    "bf16-mixed": {"rel": 2e-2, "abs": 5e-3, "norm": 2e-2},
    "16-mixed": {"rel": 2e-2, "abs": 5e-3, "norm": 2e-2},  # on CPU Lightning takes bf16-mixed
    "16-mixed, scaled": {"rel": 2.5e-3, "abs": 1e-3, "norm": 2.5e-3},
}
