"""How far a student's distribution of the next token is from a teacher's: the classes to inject into distillation."""

import math
from abc import ABC, abstractmethod

from lit_rlhf.functional.kl import kl_of_logprobs
from lit_rlhf.functional.numerics import LEAST_LOGPROB, at_least_float32
from lit_rlhf.functional.shapes import Logits, Numbers
from lit_rlhf.options import check_option


class Divergence(ABC):
    """A divergence of next-token distributions, in nats and of each token."""

    @abstractmethod
    def __call__(self, logits: Logits, teacher_logits: Logits) -> Numbers:
        """The divergence (...), 0 where the two agree.

        Args:
            logits: (..., V) of the student, at the temperature that counts, differentiable.
            teacher_logits: (..., V) of the teacher, at the same temperature.
        """


class GeneralizedJSD(Divergence):
    r"""$\beta\,KL(T\|M) + (1-\beta)\,KL(S\|M)$ with $M = \beta T + (1-\beta)S$ (GKD, arXiv:2306.13649).

    S is the student, T the teacher. The ends are the two KL divergences themselves, as in the paper and in TRL:
    $KL(T\|S)$ at $\beta = 0$ (forward: the student covers all that the teacher might write) and $KL(S\|T)$ at 1
    (reverse, as in MiniLLM: it writes nothing that the teacher wouldn't). They are the limits of the divergence over
    $\beta$ and over $1-\beta$, while its own value goes to 0: near the ends a step is small, at the ends it is not.
    Between them the divergence is at most $-\beta\log\beta - (1-\beta)\log(1-\beta)$, 0.69 in the middle.

    Args:
        beta: In [0, 1].

    Raises:
        ConfigurationError: beta is out of range.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([0.0, 0.0]), torch.tensor([0.25, 0.75]).log()
        >>> [round(float(GeneralizedJSD(beta)(student, teacher)), 4) for beta in (0.0, 0.5, 1.0)]
        [0.1308, 0.0338, 0.1438]
    """

    def __init__(self, beta: float = 0.5) -> None:
        check_option(0 <= beta <= 1, self, "beta", beta, "in [0, 1]")
        self.beta = float(beta)

    def __call__(self, logits: Logits, teacher_logits: Logits) -> Numbers:
        """See the class."""
        student = at_least_float32(logits).log_softmax(-1).clamp_min(LEAST_LOGPROB)
        teacher = at_least_float32(teacher_logits).log_softmax(-1).clamp_min(LEAST_LOGPROB)
        if self.beta == 0:
            return kl_of_logprobs(teacher, student)
        if self.beta == 1:
            return kl_of_logprobs(student, teacher)
        mixture = (student + math.log1p(-self.beta)).logaddexp(teacher + math.log(self.beta))
        to_teacher, to_student = (kl_of_logprobs(end, mixture) for end in (teacher, student))
        return self.beta * to_teacher + (1 - self.beta) * to_student
