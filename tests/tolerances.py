"""The tolerances of numeric tests, in one place: a test names what it compares, never a number of its own."""

FP32 = {"rtol": 1e-5, "atol": 1e-6}  # the same arithmetic in another order
FP32_MODEL = {"rtol": 1e-4, "atol": 1e-4}  # through a whole decoder
FP64 = {"rtol": 1e-10, "atol": 1e-12}
BF16 = {"rtol": 2e-2, "atol": 2e-2}  # eight bits of mantissa
PROCESSES = {
    "rtol": 0.0,
    "atol": 1e-5,
}  # parameters after a few steps, trained by one process or by two
METRICS = {"rel_tol": 1e-3, "abs_tol": 1e-4}  # of runs by one process or by two, for math.isclose
