"""The shapes that arguments of formulas have (layer L1): N sequences of T tokens, or B rows of K branches each."""

from jaxtyping import Bool, Float
from torch import Tensor

Tokens = Float[Tensor, "sequences time"]
"""(N, T): a number for each token."""
Mask = Bool[Tensor, "sequences time"]
"""(N, T): which tokens count."""
Sequences = Float[Tensor, " sequences"]
"""(N,): a number for each sequence."""
Counted = Bool[Tensor, " sequences"]
"""(N,): which sequences count."""
Lists = Float[Tensor, "rows branches"]
"""(B, K): a number for each branch."""
ListMask = Bool[Tensor, "rows branches"]
"""(B, K): which branches exist."""
Rows = Float[Tensor, " rows"]
"""(B,): a number for each row."""
Numbers = Float[Tensor, "*shape"]
"""Of any shape."""
Marks = Bool[Tensor, "*shape"]
"""Which of these count."""
Logits = Float[Tensor, "*shape vocabulary"]
"""Of any shape, with a last axis V."""
