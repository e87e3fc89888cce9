"""What every DataModule must do; test classes inherit it and say how to make one."""

import pickle
from collections.abc import Callable, Iterable
from itertools import chain
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.trainer.states import TrainerState
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import BranchedDataModule, RowsSource
from lit_rlhf.testing import make_tokenizer
from tests.walks import walk

EOS = "<eos>"
PROMPTS = [f"{'so ' * (n % 7)}tell me of {n}:" for n in range(20)]
ANSWERS = ["the best ", "a bad one", " in the other the", "it", "there is none to be had"]


def attach(module: BranchedDataModule, replicas: int = 1, rank: int = 0) -> BranchedDataModule:
    """As if a Trainer on several processes had taken the module."""
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        distributed_sampler_kwargs={"num_replicas": replicas, "rank": rank},
        overfit_batches=0,
        accelerator=CPUAccelerator(),
        training=False,
        state=TrainerState(),
    )
    return module


def ready(module: BranchedDataModule, stage: str | None = "fit") -> BranchedDataModule:
    module.prepare_data()
    module.setup(stage)
    return module


def indices(batches: Iterable[dict[str, Any]]) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches]


def flat(batches: Iterable[dict[str, Any]]) -> list[int]:
    return list(chain.from_iterable(indices(batches)))


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(
            equal(a, b) for a, b in zip(left, right, strict=True)
        )
    return bool(left == right)


class DataModuleContract:
    """Inherit as `TestX(DataModuleContract)`."""

    kind: ClassVar[type[BranchedDataModule]]
    dtypes: ClassVar[dict[str, torch.dtype]]  # of the keys beside the common ones

    def raw_rows(self) -> list[dict[str, Any]]:
        """Raw rows with the columns of the default format; prompts are PROMPTS, some of them twice."""
        raise NotImplementedError

    def completions(self, row: dict[str, Any]) -> list[str]:
        """The completions of a raw row."""
        raise NotImplementedError

    @pytest.fixture
    def make(self, tokenizer: PreTrainedTokenizerFast) -> Callable[..., BranchedDataModule]:
        def factory(**options: Any) -> BranchedDataModule:
            defaults = {
                "train": RowsSource(self.raw_rows()),
                "tokenizer": tokenizer,
                "batch_size": 4,
            }
            return self.kind(**{**defaults, **options})

        return factory

    def test_batches_have_the_keys_and_types_of_their_kind(
        self, make: Callable[..., BranchedDataModule]
    ) -> None:
        common = dict.fromkeys(("input_ids", "branch_ids", "position_ids", "index"), torch.int64)
        for batch in ready(make()).train_dataloader():
            tensors = {
                name: value.dtype for name, value in batch.items() if isinstance(value, Tensor)
            }
            assert tensors == {**common, **self.dtypes}
            assert all(
                batch[name].shape == batch["input_ids"].shape
                for name in ("branch_ids", "position_ids")
            )
            assert batch["index"].shape == (4,)

    def test_tokens_branches_and_positions_are_those_of_the_text(
        self, make: Callable[..., BranchedDataModule]
    ) -> None:
        module = ready(make(bucket_batches=3))
        tokenizer, raw = module.tokenizer, self.raw_rows()
        for batch in module.train_dataloader():
            for line in range(4):
                row = raw[module.rows["train"][int(batch["index"][line])]["row"]]
                texts = [row["prompt"], *(text + EOS for text in self.completions(row))]
                expected: list[tuple[int, int, int]] = []
                start = 0
                for branch, text in enumerate(texts):
                    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                    expected += [(token, branch, start + place) for place, token in enumerate(ids)]
                    start = len(tokenizer(texts[0])["input_ids"])
                width = batch["input_ids"].shape[1]
                expected += [(tokenizer.pad_token_id, -1, 0)] * (width - len(expected))
                columns = (
                    batch[name][line].tolist()
                    for name in ("input_ids", "branch_ids", "position_ids")
                )
                assert list(zip(*columns, strict=True)) == expected

    def test_width_is_the_longest_row_rounded_up(
        self, make: Callable[..., BranchedDataModule]
    ) -> None:
        module = ready(make(pad_to_multiple_of=16))
        for batch in module.train_dataloader():
            longest = max(
                int(module.rows["train"].lengths[index]) for index in batch["index"].tolist()
            )
            assert batch["input_ids"].shape[1] % 16 == 0
            assert longest <= batch["input_ids"].shape[1] < longest + 16

    def test_no_prompt_stands_on_both_sides_of_a_split(
        self, make: Callable[..., BranchedDataModule]
    ) -> None:
        module, raw = ready(make(val_fraction=0.3)), self.raw_rows()
        sides = [
            {raw[module.rows[side][i]["row"]]["prompt"] for i in range(len(module.rows[side]))}
            for side in ("train", "val")
        ]
        assert sides[0].isdisjoint(sides[1])
        assert sides[0] | sides[1] == set(PROMPTS)
        assert len(module.rows["train"]) + len(module.rows["val"]) == len(raw)

    def test_the_split_depends_on_prompts_alone(
        self, make: Callable[..., BranchedDataModule]
    ) -> None:
        def side(rows: list[dict[str, Any]], **options: Any) -> set[str]:
            module = ready(make(train=RowsSource(rows), val_fraction=0.3, **options))
            return {
                rows[module.rows["val"][i]["row"]]["prompt"] for i in range(len(module.rows["val"]))
            }

        raw = self.raw_rows()
        assert side(raw) == side(
            raw[::-1], seed=7, batch_size=2, tokenizer=make_tokenizer(merges=())
        )
        assert side(raw) != side(raw, split_seed=1)

    def test_two_runs_of_one_seed_give_the_same_batches(
        self, make: Callable[..., BranchedDataModule]
    ) -> None:
        first, second, other = (
            list(ready(make(seed=seed)).train_dataloader()) for seed in (3, 3, 4)
        )
        assert equal(first, second)
        assert indices(first) != indices(other)

    @pytest.mark.filterwarnings(
        "ignore:.*fork:DeprecationWarning"
    )  # torch's loaders fork, from Python 3.12 on said aloud
    def test_workers_change_nothing(self, make: Callable[..., BranchedDataModule]) -> None:
        alone, helped = ready(make()), ready(make(num_workers=2))
        mine, theirs = alone.train_dataloader(), helped.train_dataloader()
        for _ in range(2):
            assert equal(list(mine), list(theirs))

    def test_each_epoch_has_an_order_of_its_own(
        self, make: Callable[..., BranchedDataModule]
    ) -> None:
        module = ready(make())
        loader = module.train_dataloader()
        first, second = indices(loader), indices(loader)
        assert first != second
        loader.sampler.set_epoch(0)
        assert indices(loader) == first
        assert (
            indices(module.train_dataloader()) == second
        )  # a new loader goes on with the next epoch

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_pass_that_is_broken_off_starts_over(
        self, make: Callable[..., BranchedDataModule], workers: int
    ) -> None:
        module = ready(make(num_workers=workers))
        loader = module.train_dataloader()
        expected = indices(module.train_dataloader())
        loader.sampler.set_epoch(0)
        batches = iter(loader)
        assert [next(batches)["index"].tolist() for _ in range(2)] == expected[:2]
        assert module.state_dict()["batches_done"] == 2
        assert indices(loader) == expected
        assert next(iter(module.train_dataloader()))["index"].tolist() != expected[0]

    def test_an_epoch_has_each_row_once(self, make: Callable[..., BranchedDataModule]) -> None:
        loader = ready(make()).train_dataloader()
        seen = flat(loader)
        assert len(seen) == len(set(seen)) == len(loader) * 4 == len(self.raw_rows()) // 4 * 4

    @pytest.mark.parametrize("done", [1, 3, 5])
    def test_a_restored_position_goes_on_exactly(
        self, make: Callable[..., BranchedDataModule], done: int
    ) -> None:
        whole = ready(make())
        expected = [list(whole.train_dataloader()) for _ in range(3)]
        broken = ready(make())
        list(broken.train_dataloader())
        batches = iter(broken.train_dataloader())
        for _ in range(done):
            next(batches)
        state = broken.state_dict()
        assert (state["epoch"], state["batches_done"]) == (1, done)
        resumed = ready(make())
        resumed.load_state_dict(state)
        loader = resumed.train_dataloader()
        assert len(loader) == len(expected[0])  # what is skipped still counts, as trainers expect
        assert equal(list(loader), expected[1][done:])
        assert equal(list(loader), expected[2])

    def test_ranks_share_the_batches_of_one_process(
        self, make: Callable[..., BranchedDataModule]
    ) -> None:
        one = indices(ready(make(batch_size=6)).train_dataloader())
        ranks = [
            indices(ready(attach(make(batch_size=3), 2, rank)).train_dataloader())
            for rank in range(2)
        ]
        assert len(ranks[0]) == len(ranks[1]) == len(one)
        for whole, left, right in zip(one, *ranks, strict=True):
            assert set(left).isdisjoint(right)
            assert set(left) | set(right) == set(whole)

    @pytest.mark.parametrize("rows", walk([8, 9, 15, 17, 22], 9, 22))
    @pytest.mark.parametrize("batch_size", [1, 2, 4])
    def test_ranks_evaluate_each_row_once_in_equally_many_batches(
        self, make: Callable[..., BranchedDataModule], rows: int, batch_size: int
    ) -> None:
        source = RowsSource(self.raw_rows()[:rows])
        modules = [attach(make(val=source, batch_size=batch_size), 2, rank) for rank in range(2)]
        loaders = [ready(module).val_dataloader() for module in modules]
        seen = [indices(loader) for loader in loaders]
        assert len(seen[0]) == len(seen[1]) == len(loaders[0])
        assert sorted(chain.from_iterable(seen[0] + seen[1])) == list(range(rows))

    def test_evaluation_has_each_row_once_and_prediction_in_order(
        self, make: Callable[..., BranchedDataModule]
    ) -> None:
        module = ready(make(test=RowsSource(self.raw_rows())), "test")
        tested = list(module.test_dataloader())
        assert sorted(flat(tested)) == list(range(len(self.raw_rows())))
        assert equal(tested, list(module.test_dataloader()))
        assert flat(module.predict_dataloader()) == list(range(len(self.raw_rows())))

    def test_a_pass_leaves_the_global_generator_alone(
        self, make: Callable[..., BranchedDataModule]
    ) -> None:
        module = ready(make(val_fraction=0.3))
        before = torch.get_rng_state()
        list(module.train_dataloader())
        list(module.val_dataloader())
        assert torch.equal(before, torch.get_rng_state())

    def test_the_collator_holds_no_tokenizer(self, make: Callable[..., BranchedDataModule]) -> None:
        assert len(pickle.dumps(ready(make()).collator())) < 300

    def test_tokens_are_made_once(
        self, make: Callable[..., BranchedDataModule], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = ready(make())
        monkeypatch.setattr(
            "lit_rlhf.data.prepared.Preparation.__iter__",
            lambda self: pytest.fail("tokenized again"),
        )
        second = ready(make(batch_size=2, seed=5))
        assert second.dataset_hash == first.dataset_hash
        assert equal(second.rows["train"][3], first.rows["train"][3])
