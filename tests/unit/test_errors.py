"""What errors are told apart by."""

import pytest
import torch

from lit_rlhf.errors import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("No room."),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_is_short_is_known_by_kind_or_by_words(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_a_kernel_that_is_too_large_is_something_else() -> None:
    assert not is_out_of_memory(RuntimeError("Triton Error: out of resource: shared memory"))
