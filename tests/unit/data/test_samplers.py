"""The order of rows, against a slow independent description of it and its invariants."""

import numpy as np
import pytest
import torch

from lit_rlhf.data.samplers import EvaluationSampler, LengthBucketSampler, even_batch_size
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.seeding import generator

LENGTHS = [(7 * n) % 31 + 1 for n in range(100)]


def batches(sampler: LengthBucketSampler, epoch: int = 0) -> list[list[int]]:
    rows = sampler.order(epoch).tolist()
    return [
        rows[start : start + sampler.batch_size]
        for start in range(0, len(rows), sampler.batch_size)
    ]


def reference(
    lengths: list[int], global_batch: int, seed: int, epoch: int, bucket_batches: int
) -> list[list[int]]:
    """The global batches in order, by plain loops."""
    rng = generator(seed, "order", epoch)
    order = torch.randperm(len(lengths), generator=rng).tolist()
    count = len(order) // global_batch
    order, result = order[: count * global_batch], []
    while order:
        bucket, order = (
            order[: bucket_batches * global_batch],
            order[bucket_batches * global_batch :],
        )
        if bucket_batches > 1:
            bucket.sort(key=lambda row: -lengths[row])
        while bucket:
            result.append(bucket[:global_batch])
            bucket = bucket[global_batch:]
    return [result[place] for place in torch.randperm(count, generator=rng).tolist()]


@pytest.mark.parametrize("bucket_batches", [1, 3, 50])
@pytest.mark.parametrize("epoch", [0, 2])
def test_one_process_has_the_global_batches(bucket_batches: int, epoch: int) -> None:
    sampler = LengthBucketSampler(LENGTHS, 6, seed=1, bucket_batches=bucket_batches)
    assert batches(sampler, epoch) == reference(LENGTHS, 6, 1, epoch, bucket_batches)


@pytest.mark.parametrize("replicas", [2, 3])
def test_processes_share_each_global_batch_by_turns(replicas: int) -> None:
    samplers = [
        LengthBucketSampler(LENGTHS, 4, num_replicas=replicas, rank=rank, seed=1)
        for rank in range(replicas)
    ]
    shares = [batches(sampler) for sampler in samplers]
    for place, whole in enumerate(reference(LENGTHS, 4 * replicas, 1, 0, 50)):
        assert [share[place] for share in shares] == [
            whole[rank::replicas] for rank in range(replicas)
        ]


def test_sorting_saves_padding() -> None:
    def padding(bucket_batches: int) -> int:
        lengths = np.asarray(LENGTHS)
        return sum(
            int((lengths[batch].max() - lengths[batch]).sum())
            for batch in batches(LengthBucketSampler(LENGTHS, 5, bucket_batches=bucket_batches))
        )

    assert padding(50) < padding(4) < padding(1) / 2


@pytest.mark.parametrize("batch_size", [8, 16, 64])
def test_padding_of_lengths_as_in_chat_data_is_below_five_percent(batch_size: int) -> None:
    rng = np.random.default_rng(0)
    prompts = np.minimum(rng.lognormal(np.log(120), 1.0, 5000), 512)
    answers = np.minimum(rng.lognormal(np.log(180), 0.8, (5000, 2)), 512)
    lengths = (prompts + answers.sum(1)).astype(int)
    order = LengthBucketSampler(lengths, batch_size).order(0)
    parts = lengths[order].reshape(-1, batch_size)
    assert 1 - parts.sum() / (parts.max(1) * batch_size).sum() < 0.05


def test_the_rows_left_out_change_by_epoch() -> None:
    sampler = LengthBucketSampler(LENGTHS, 30)
    left_out = [set(range(100)) - set(sampler.order(epoch)) for epoch in range(3)]
    assert all(len(rows) == 10 for rows in left_out)
    assert left_out[0] != left_out[1] != left_out[2]


@pytest.mark.parametrize(("replicas", "expected"), [(1, [10]), (2, [5, 5]), (3, [4, 3, 3])])
def test_without_drop_last_the_rest_is_dealt(replicas: int, expected: list[int]) -> None:
    samplers = [
        LengthBucketSampler(
            LENGTHS, 30 // replicas, num_replicas=replicas, rank=rank, drop_last=False
        )
        for rank in range(replicas)
    ]
    assert sorted(row for sampler in samplers for row in sampler.order(0)) == list(range(100))
    assert [len(batches(sampler)[-1]) for sampler in samplers] == expected
    assert [len(sampler) for sampler in samplers] == [len(sampler.order(0)) for sampler in samplers]
    assert {sampler.num_batches for sampler in samplers} == {4}


def test_a_rest_smaller_than_the_processes_is_left_out_even_so() -> None:
    samplers = [
        LengthBucketSampler(LENGTHS, 11, num_replicas=3, rank=rank, drop_last=False)
        for rank in range(3)
    ]
    assert [len(sampler.order(0)) for sampler in samplers] == [33, 33, 33]


def test_the_position_is_used_once() -> None:
    sampler = LengthBucketSampler(LENGTHS, 10)
    sampler.load_state_dict({"epoch": 2, "batches_done": 4})
    assert len(sampler) == 100
    assert list(sampler) == sampler.order(2)[40:].tolist()
    assert list(sampler) == sampler.order(2).tolist()
    assert sampler.state_dict() == {
        "epoch": 2,
        "batches_done": 4,
    }  # counted by the loader, which knows what was used


def test_another_epoch_forgets_the_position() -> None:
    sampler = LengthBucketSampler(LENGTHS, 10)
    sampler.load_state_dict({"epoch": 2, "batches_done": 4})
    sampler.set_epoch(2)
    assert sampler.state_dict() == {"epoch": 2, "batches_done": 4}
    sampler.set_epoch(3)
    assert list(sampler) == sampler.order(3).tolist()


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"7 rows don't fill one batch: batch_size 4 on 2 process\(es\) takes 8",
    ):
        LengthBucketSampler([1] * 7, 4, num_replicas=2)
    assert LengthBucketSampler([1] * 7, 4, num_replicas=2, drop_last=False).num_batches == 1
    with pytest.raises(ConfigurationError, match=r"1 row\(s\) can't be evaluated by 2 processes"):
        EvaluationSampler(np.ones(1), even_batch_size(1, 4, 2), num_replicas=2)


def test_even_batches_are_as_large_as_asked_for_where_they_can_be() -> None:
    for rows in range(1, 40):
        assert even_batch_size(rows, 4, 1) == 4
        for replicas in range(2, min(rows, 4) + 1):
            size = even_batch_size(rows, 4, replicas)
            shares = [len(range(rank, rows, replicas)) for rank in range(replicas)]
            assert len({-(-share // size) for share in shares}) == 1
            asked = {-(-share // 4) for share in shares}
            assert size == 4 or len(asked) == 2


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_evaluation_by_length_has_each_row_once_and_rows_of_a_length_together(
    replicas: int,
) -> None:
    lengths = np.asarray(LENGTHS)

    def orders(*, by_length: bool) -> list[list[int]]:
        return [
            list(
                EvaluationSampler(lengths, 4, num_replicas=replicas, rank=rank, by_length=by_length)
            )
            for rank in range(replicas)
        ]

    plain, sorted_ = orders(by_length=False), orders(by_length=True)
    assert plain == [list(range(rank, 100, replicas)) for rank in range(replicas)]
    assert sorted(row for order in sorted_ for row in order) == list(range(100))
    assert sorted_ == orders(by_length=True)

    def padding(order: list[int]) -> int:
        parts = [lengths[order[at : at + 4]] for at in range(0, len(order), 4)]
        return sum(int((part.max() - part).sum()) for part in parts)

    assert sum(map(padding, sorted_)) < sum(map(padding, plain)) / 4
    starts = [lengths[order[0]] for order in sorted_]
    assert max(starts) < lengths.max()  # the longest rows don't all come first
