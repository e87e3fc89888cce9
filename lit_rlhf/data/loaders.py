"""A loader that knows how many batches it has handed out."""

from collections.abc import Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from lit_rlhf.data.samplers import Position

T = TypeVar("T")


class ResumableLoader(DataLoader[T]):
    """A `DataLoader` over a `LengthBucketSampler` that counts batches as they are handed out, not as they are fetched.

    Each pass over it is one epoch; the next pass has the next epoch's order, unless a trainer sets the epoch. A pass
    that is broken off starts over.
    """

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        """Go through the rest of the epoch.

        A generator: workers are started and the sampler is asked for rows at the first `next`, not at `iter`. Lightning
        calls `iter` before it sets the epoch of a resumed run, and workers would fetch batches of another permutation
        (its issue 21938).
        """
        position = self._position
        if (
            position is None
        ):  # Lightning has put another sampler in place, as `overfit_batches` does
            yield from super().__iter__()
            return
        epoch, position.batches_done = position.epoch, position.start
        for batch in super().__iter__():
            position.batches_done += 1
            yield batch
        if position.epoch == epoch:
            position.set_epoch(epoch + 1)

    def state_dict(self) -> dict[str, int]:
        """Where the pass stands. Lightning keeps this in checkpoints, and warns of loaders without it."""
        position = self._position
        return (
            {}
            if position is None
            else {"epoch": position.epoch, "batches_done": position.batches_done}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; where a DataModule has restored the position, it has the last word."""
        position = self._position
        if state and position is not None and not position.restored:
            position.restore(int(state["epoch"]), int(state["batches_done"]))

    @property
    def _position(self) -> Position | None:
        found = getattr(self.sampler, "position", None)
        return found if isinstance(found, Position) else None
