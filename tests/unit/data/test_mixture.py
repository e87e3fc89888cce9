"""Mixtures: which rows an epoch has, the same for every split over processes, workers and restarts."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import (
    ExplicitPrompt,
    FileSource,
    Mixture,
    Portion,
    PreferenceDataModule,
    Record,
    RowsSource,
    Source,
    UnpairedDataModule,
)
from lit_rlhf.data.mixture import Shares
from lit_rlhf.data.recognition import spell
from lit_rlhf.data.records import Row
from lit_rlhf.data.samplers import LengthBucketSampler
from lit_rlhf.errors import ConfigurationError, DataError
from tests.unit.data.contract import attach, flat, indices, ready


def pairs(name: str, count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{name} {n}?", "chosen": " yes" * (n % 5 + 1), "rejected": " no"}
        for n in range(count)
    ]


def rows(name: str, count: int) -> RowsSource:
    return RowsSource(pairs(name, count), name=name)


def two(first: int = 24, second: int = 60, weights: tuple[float, float] | None = (2, 1)) -> Mixture:
    a, b = weights or (None, None)
    return Mixture(
        [
            Portion(source=rows("a", first), weight=a),
            Portion(source=rows("b", second), weight=b),
        ]
    )


def mixed(tokenizer: PreTrainedTokenizerFast, **options: Any) -> PreferenceDataModule:
    made = {"train": two(), "batch_size": 3, "seed": 4, **options}
    return PreferenceDataModule(tokenizer=tokenizer, **made)


class TestShares:
    """Counts and rows of an epoch."""

    @pytest.mark.parametrize(
        ("sizes", "weights", "counts"),
        [
            ([24, 60], [2, 1], [24, 12]),
            ([24, 60], [1, 2], [24, 48]),
            ([10, 10, 10], [0.1, 0.7, 0.2], [1, 10, 3]),
            ([3, 1000], [3.0, 1000.0], [3, 1000]),
        ],
    )
    def test_counts_are_in_the_proportion_of_the_weights(
        self, sizes: list[int], weights: list[float], counts: list[int]
    ) -> None:
        shares = Shares(sizes, weights)
        assert shares.counts == counts
        starts = np.cumsum([0, *sizes])
        for epoch in range(3):
            found, _ = np.histogram(shares.rows(0, epoch), bins=starts)
            assert found.tolist() == counts

    def test_every_row_is_seen_before_one_is_seen_again(self) -> None:
        shares = Shares([6, 50], [6.0, 20.0])  # 20 of 50: a pass ends within an epoch
        seen: Counter[int] = Counter()
        for epoch in range(20):
            seen.update(shares.rows(3, epoch).tolist())
            counts = [seen[row] for row in range(6, 56)]
            assert max(counts) - min(counts) <= 1
            assert {seen[row] for row in range(6)} == {epoch + 1}

    def test_a_new_pass_has_a_new_order(self) -> None:
        shares = Shares([10, 50], [1.0, 1.0])
        first, again = ([*shares.rows(0, e)[10:]] for e in (0, 5))
        assert sorted(first) != sorted(again)
        assert [*shares.rows(0, 0)] == [*shares.rows(0, 0)] != [*shares.rows(1, 0)]

    def test_a_weight_that_gives_nothing_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match=r"none of b\. Raise its weight"):
            Shares([10, 10], [1.0, 0.01], ["a", "b"])


class TestSampling:
    """The rows of an epoch, over processes and restarts."""

    def sampler(self, replicas: int = 1, rank: int = 0, size: int = 12) -> LengthBucketSampler:
        lengths = np.random.default_rng(0).integers(1, 90, 84)
        shares = Shares([24, 60], [2.0, 1.0])
        return LengthBucketSampler(
            lengths,
            size // replicas,
            num_replicas=replicas,
            rank=rank,
            bucket_batches=2,
            shares=shares,
        )

    @pytest.mark.parametrize("replicas", [2, 3, 4])
    def test_processes_share_the_batches_of_one(self, replicas: int) -> None:
        whole = np.array(self.sampler().order(3)).reshape(-1, 12)
        parts = [
            np.array(self.sampler(replicas, rank).order(3)).reshape(3, -1)
            for rank in range(replicas)
        ]
        assert np.sort(np.hstack(parts)).tolist() == np.sort(whole).tolist()

    def test_an_epoch_has_what_the_shares_say(self) -> None:
        for epoch in (0, 1, 4):
            order = self.sampler().order(epoch)
            assert sorted(order) == sorted(Shares([24, 60], [2.0, 1.0]).rows(0, epoch).tolist())


class TestDataModules:
    """Mixtures under a DataModule."""

    def test_counts_by_source_are_said(
        self, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
    ) -> None:
        a, b = rows("a", 24), RowsSource([*pairs("b", 60), {"prompt": "?"}], name="b")
        mixture = Mixture([Portion(source=a, weight=2), Portion(source=b, weight=1)])
        with caplog.at_level(logging.INFO):
            data = ready(mixed(tokenizer, train=mixture))
        assert "an epoch has 36 rows: 24 of the 24 of a, 12 of the 60 of b" in caplog.text
        assert "b: 60 of 61 rows used; 1 left out, no column 'chosen'" in caplog.text
        report = data.reports["train"]
        assert (report.rows, report.records, report.counts) == (85, 84, {"no column 'chosen'": 1})
        assert report.brief().startswith("a (24 pairs) + b (60 pairs): 84 of 85 rows used; 1 left")
        assert data.rows["train"].sizes == [24, 60]

    def test_a_portion_without_a_format_is_read_by_the_modules(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        asked = [{"question": row.pop("prompt"), **row} for row in pairs("a", 24)]
        own = Portion(source=RowsSource(asked), format=ExplicitPrompt(prompt="question"))
        mixture, plain = Mixture([own, Portion(source=rows("b", 60))]), rows("c", 8)
        data = ready(mixed(tokenizer, train=mixture, val=plain, format=ExplicitPrompt()))
        assert (data.rows["train"].sizes, data.rows["val"].sizes) == ([24, 60], [8])

    def test_without_weights_an_epoch_has_every_row(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        data = ready(mixed(tokenizer, train=two(weights=None)))
        assert sorted(flat(data.train_dataloader())) == [*range(84)]

    def test_workers_and_processes_change_nothing(self, tokenizer: PreTrainedTokenizerFast) -> None:
        def epochs(**options: Any) -> list[list[list[int]]]:
            loader = ready(mixed(tokenizer, **options)).train_dataloader()
            return [indices(loader) for _ in range(3)]

        alone = epochs(batch_size=6)
        assert alone == epochs(batch_size=6, num_workers=2)
        ranks = []
        for rank in range(2):
            data = ready(attach(mixed(tokenizer, batch_size=3), replicas=2, rank=rank))
            loader = data.train_dataloader()
            ranks.append([indices(loader) for _ in range(1)])
        together = [sorted(x + y) for x, y in zip(ranks[0][0], ranks[1][0], strict=True)]
        assert together == [sorted(batch) for batch in alone[0]]

    @pytest.mark.parametrize("stop", [0, 5, 12, 17])
    def test_a_restored_position_goes_on_exactly(
        self, tokenizer: PreTrainedTokenizerFast, stop: int
    ) -> None:
        def stream(data: PreferenceDataModule) -> Iterator[list[int]]:
            loader = data.train_dataloader()
            while True:
                yield from ([*batch["index"].tolist()] for batch in loader)

        unbroken = stream(ready(mixed(tokenizer)))
        expected = [next(unbroken) for _ in range(40)]
        first = ready(mixed(tokenizer))
        begun = stream(first)
        seen = [next(begun) for _ in range(stop)]
        second = ready(mixed(tokenizer))
        second.load_state_dict(first.state_dict())
        rest = stream(second)
        assert seen + [next(rest) for _ in range(40 - stop)] == expected

    def test_each_source_is_read_by_its_own_format(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        implicit = {
            "chosen": "\n\nHuman: Hi.\n\nAssistant: Yo.",
            "rejected": "\n\nHuman: Hi.\n\nAssistant: No.",
        }
        named = {"q": "Hi.", "good": " Yo.", "bad": " No."}
        mixture = Mixture(
            [
                Portion(source=RowsSource([implicit])),
                Portion(
                    source=RowsSource([named]),
                    format=ExplicitPrompt(prompt="q", chosen="good", rejected="bad"),
                ),
                Portion(source=rows("c", 2)),
            ]
        )
        data = ready(mixed(tokenizer, train=mixture, batch_size=1))
        texts = [
            tokenizer.decode(data.rows["train"][n]["completion_ids"][1]).strip() for n in range(4)
        ]
        assert [text[:2] for text in texts] == ["No", "No", "no", "no"]
        assert "ImplicitPrompt" in spell(data.format_of("train"))

    def test_no_prompt_stands_on_both_sides_of_a_split(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        data = ready(mixed(tokenizer, train=two(40, 60), val_fraction=0.3))
        train, val = data.rows["train"], data.rows["val"]
        assert not set(train.prompt_keys) & set(val.prompt_keys)
        assert [a + b for a, b in zip(train.sizes, val.sizes, strict=True)] == [40, 60]
        counts = Shares(train.sizes, [2, 1]).counts
        assert len(flat(data.train_dataloader())) == sum(counts) // 3 * 3

    def test_a_cap_reads_no_further(
        self, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
    ) -> None:
        text = "\n".join(map(json.dumps, pairs("a", 9)))
        (tmp_path / "a.jsonl").write_text(f"{text}\n" + "no json\n" * 20)
        capped = Mixture([Portion(path=str(tmp_path / "a.jsonl"), max_rows=9)])
        data = ready(mixed(tokenizer, train=capped))
        assert data.reports["train"].brief().endswith("(the first 9 rows): 9 of 9 rows used")
        fewer = ready(
            mixed(tokenizer, train=Mixture([Portion(path=str(tmp_path / "a.jsonl"), max_rows=5)]))
        )
        assert len(fewer.rows["train"]) == 5
        assert fewer.dataset_hash != data.dataset_hash

    def test_other_weights_tokenize_nothing_anew(
        self, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = ready(mixed(tokenizer))
        monkeypatch.setattr(
            "lit_rlhf.data.prepared.Preparation.__iter__", lambda self: pytest.fail("again")
        )
        second = ready(mixed(tokenizer, train=two(weights=(1, 3))))
        assert first.dataset_hash == second.dataset_hash
        assert len(flat(second.train_dataloader())) == 78  # 20 of a, 60 of b, in threes

    def test_a_position_within_an_epoch_of_other_weights_is_refused(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        first = ready(mixed(tokenizer))
        next(iter(first.train_dataloader()))
        with pytest.raises(Exception, match=r"weights \[2, 1\].*weights \[1, 3\]"):
            ready(mixed(tokenizer, train=two(weights=(1, 3)))).load_state_dict(first.state_dict())

    def test_margins_of_one_source_alone_are_filled(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        with_margin = RowsSource([{**row, "margin": 2.0} for row in pairs("a", 3)])
        mixture = Mixture([Portion(source=with_margin), Portion(source=rows("b", 3))])
        data = ready(mixed(tokenizer, train=mixture, batch_size=6))
        batch = next(iter(data.train_dataloader()))
        assert batch["margin"][batch["index"].argsort()].tolist() == [2.0] * 3 + [0.0] * 3

    def test_plain_pytorch(self, tokenizer: PreTrainedTokenizerFast) -> None:
        data = ready(mixed(tokenizer, layout="rows"))
        batch = next(iter(data.train_dataloader()))
        assert batch["chosen_input_ids"].dtype == torch.int64


class Own(PreferenceDataModule):
    """Reads rows by itself."""

    def records(self, row: Row) -> list[Record]:
        return [Record(row["prompt"], (row["chosen"], row["rejected"]))]


def labelled(**fields: Any) -> Source:
    return RowsSource([{"prompt": "a", "completion": " b", **fields}])


WRONG: Mapping[str, tuple[Any, str]] = {
    "weights on some": (
        lambda t: Mixture([Portion(path="a.jsonl", weight=1), Portion(path="b.jsonl")]),
        r"1 of 2 portions have a weight",
    ),
    "path and source": (lambda t: Portion(path="a", source=rows("a", 1)), "give one of the two"),
    "neither": (lambda t: Portion(weight=1), "give one of the two"),
    "weight 0": (lambda t: Portion(path="a", weight=0), r"weight must be above 0"),
    "cap 0": (lambda t: Portion(path="a", max_rows=0), r"max_rows must be 1 or more"),
    "no portions": (lambda t: Mixture([]), r"portions must be one or more"),
    "weights of val": (lambda t: mixed(t, val=two()), r"`val` is a Mixture with weights"),
    "own records": (
        lambda t: Own(
            Mixture([Portion(source=rows("a", 1), format=ExplicitPrompt())]), tokenizer=t
        ),
        r"Own reads rows by its own `records`: leave the format out",
    ),
    "no file": (
        lambda t: ready(mixed(t, train=Mixture([Portion(path="nowhere.jsonl")]))),
        r"There is no file nowhere\.jsonl",
    ),
    "fields differ": (
        lambda t: ready(
            UnpairedDataModule(
                Mixture(
                    [Portion(source=labelled(label=True)), Portion(source=labelled(score=0.5))]
                ),
                tokenizer=t,
            )
        ),
        r"fields \['label'\].*\['score'\]: one batch can't hold both",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_can_not_be_mixed_is_refused(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises((ConfigurationError, DataError), match=message):
        make(tokenizer)


def test_a_mixture_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    mixture = Mixture(
        [Portion(path=str(tmp_path / "a.jsonl")), Portion(source=RowsSource([{"n": 3}]))]
    )
    assert [row["n"] for row in mixture.load()] == [1, 2, 3]
    other = Mixture([Portion(source=FileSource(str(tmp_path / "a.jsonl")))])
    assert mixture.fingerprint().startswith(other.fingerprint())
    assert str(mixture) == f"{tmp_path}/a.jsonl + rows in memory"
