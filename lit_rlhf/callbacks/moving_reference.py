"""A reference that follows the policy: sDPO, TR-DPO, and PPO against an average of its own past."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.lightning import iterations_done
from lit_rlhf.models import divide
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.options import check_option


class MovingReference(Callback):
    r"""Moves the reference towards the policy: $\theta_{ref} \leftarrow \alpha\,\theta + (1 - \alpha)\,\theta_{ref}$.

    With `alpha: 1` the policy takes the reference's place: at each epoch's end that is sDPO (arXiv:2403.19270, where
    each epoch has other pairs, easy ones first), at every so many steps TR-DPO's hard update (arXiv:2404.09656). Below
    1 it is TR-DPO's soft update, and under `PPOPolicyModule` and its kin a reference that averages over the policy's
    past.

    The KL is then bounded per move and no more in total: after T full rounds of DPO the optimum is
    $\pi_{ref}e^{Tr/\beta}$, as if $\beta$ were $\beta/T$.

    With LoRA the reference becomes a frozen adapter (the matrices A and B are averaged, not their product), in full
    fine-tuning it is the frozen copy. Checkpoints hold it, so a resumed run goes on exactly.

    Args:
        alpha: In (0, 1]: how far the reference goes. TR-DPO: 0.5 to 0.6; TRL has 0.6.
        every_n_iterations: Move after every so many training batches (of policies: rollouts with their updates).
            TR-DPO: 256 to 512; TRL has 512.
        every_n_epochs: Move at the end of every so many epochs. Exactly one of the two is given.

    Raises:
        ConfigurationError: An option is out of range; the module has no reference, or one that can't move.
    """

    def __init__(
        self,
        alpha: float = 0.6,
        every_n_iterations: int | None = None,
        every_n_epochs: int | None = None,
    ) -> None:
        check_option(0 < alpha <= 1, self, "alpha", alpha, "in (0, 1]")
        periods = [period for period in (every_n_iterations, every_n_epochs) if period is not None]
        if len(periods) != 1 or periods[0] < 1:
            raise ConfigurationError(
                f"MovingReference: every_n_iterations={every_n_iterations}, every_n_epochs={every_n_epochs}: set "
                "exactly one of them, to 1 or more."
            )
        self.alpha = alpha
        self.every_n_iterations = every_n_iterations
        self.every_n_epochs = every_n_epochs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask the module for a reference of its own, before it builds the model."""
        if not isinstance(pl_module, RLHFModule) or not hasattr(pl_module, "reference"):
            raise ConfigurationError(
                f"MovingReference moves the reference of a policy, and {type(pl_module).__name__} has none. Remove it "
                "from trainer.callbacks."
            )
        pl_module.require_movable_reference(self.alpha)
        pl_module.reference.moves = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move, where iterations count."""
        self._move_if_due(pl_module, iterations_done(trainer), self.every_n_iterations)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move, where epochs count."""
        self._move_if_due(pl_module, trainer.current_epoch + 1, self.every_n_epochs)

    def _move_if_due(self, module: Any, done: int, every: int | None) -> None:
        if every is None or done % every:
            return
        divide(module)  # the reference's forward has no backward
        module.reference.move(dict(module.named_parameters()), self.alpha)
