import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.feedback import LabelStore, Pair, Vote, store as store_module


def pairs(count: int, uncertainty: bool = False) -> list[Pair]:
    return [Pair(f"p{i}", "a", "b", i / 10 if uncertainty else None) for i in range(count)]


def ask_all(store: LabelStore, rater: str) -> list[int]:
    asked = []
    while (number := store.next_pair(rater)) is not None:
        store.vote(Vote(number, rater, "first"))
        asked.append(number)
    return asked


def test_order_is_random_by_seed(tmp_path: Path) -> None:
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        store = LabelStore(tmp_path / name, seed=seed)
        store.add(pairs(20))
        orders.append(ask_all(store, "ann"))
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(1, 21)) != orders[0]


def test_most_uncertain_first_but_fewest_votes_before_that(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    store.add(pairs(4, uncertainty=True))
    assert ask_all(store, "ann") == [4, 3, 2, 1]
    store.add([Pair("new", "a", "b", -1.0)])
    assert ask_all(store, "bob") == [5, 4, 3, 2, 1]
    assert store.next_pair("cy") == 5  # the others have both their votes


def test_what_somebody_flagged_nobody_else_is_asked(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    store.add(pairs(3))
    unfit = store.next_pair("ann") or 0
    store.vote(Vote(unfit, "ann", "flag"))
    assert store.counts("bob") == (0, 2)
    assert unfit not in ask_all(store, "bob")
    store.vote(Vote(unfit, "ann", "first"))  # corrected
    assert store.next_pair("bob") == unfit


def test_two_raters_at_once_get_different_pairs(tmp_path: Path) -> None:
    store = LabelStore(tmp_path, raters_per_pair=1)
    store.add(pairs(40))
    with ThreadPoolExecutor(2) as threads:
        ann, bob = threads.map(lambda name: ask_all(LabelStore(tmp_path, 1), name), ("ann", "bob"))
    # The last pair may be given to both, so that none waits for a rater who has gone.
    assert len(ann) + len(bob) <= 41
    assert {*ann, *bob} == set(range(1, 41))
    assert Counter(vote.rater for vote in store.votes()) == Counter(ann=len(ann), bob=len(bob))


def test_a_pair_is_shown_until_it_is_judged(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    store.add(pairs(5))
    first = store.next_pair("ann")
    assert {LabelStore(tmp_path).next_pair("ann") for _ in range(3)} == {first}
    assert store.next_pair("bob") != first


def test_a_pair_of_a_rater_who_went_away_is_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LabelStore(tmp_path, raters_per_pair=1)
    store.add(pairs(2))
    gone = store.next_pair("ann")
    monkeypatch.setattr(store_module, "LEASE_SECONDS", -1.0)
    store.next_pair("ann")
    assert store.next_pair("bob") == gone


def test_skips_ask_another_rater(tmp_path: Path) -> None:
    store = LabelStore(tmp_path, raters_per_pair=1)
    store.add(pairs(1))
    store.vote(Vote(1, "ann", "skip"))
    assert store.next_pair("ann") is None
    assert store.counts("ann") == (1, 1)
    assert store.next_pair("bob") == 1
    assert store.counts("bob") == (0, 1)


def test_the_last_vote_counts_and_the_first_is_kept(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    store.add(pairs(1))
    for verdict in ("first", "tie"):
        store.vote(Vote(1, "ann", verdict, swapped=True, comment="hm", attributes={"x": "second"}))
    assert store.votes() == [Vote(1, "ann", "tie", True, {"x": "second"}, "hm", number=2)]
    with sqlite3.connect(store.path) as database:
        assert database.execute("SELECT count(*) FROM votes").fetchone() == (2,)


def test_both_orders_are_shown(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    swapped = [store.is_swapped(pair, rater) for pair in range(100) for rater in ("ann", "bob")]
    assert 70 < sum(swapped) < 130
    assert swapped[::2] != swapped[1::2]


def test_adding_again_adds_what_is_new(tmp_path: Path) -> None:
    assert LabelStore(tmp_path).add(pairs(3)) == 3
    assert LabelStore(tmp_path).add(pairs(5)) == 2


@pytest.mark.parametrize("vote", [Vote(9, "ann", "tie"), Vote(1, "ann", "maybe")])  # type: ignore[arg-type]
def test_no_vote(tmp_path: Path, vote: Vote) -> None:
    store = LabelStore(tmp_path)
    store.add(pairs(1))
    with pytest.raises(DataError, match=r"no pair 9|is no vote"):
        store.vote(vote)
    assert store.votes() == []


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="raters_per_pair must be 1 or more"):
        LabelStore(tmp_path, 0)
    with pytest.raises(ConfigurationError, match="There are no labels in"):
        LabelStore(tmp_path, create=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="can't be kept in"):
        LabelStore(tmp_path / "file")
    (tmp_path / "labels.sqlite").write_text("no database, but long enough to be looked at" * 20)
    with pytest.raises(DataError, match="is no file of labels"):
        LabelStore(tmp_path)


def test_a_file_of_another_version(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    with sqlite3.connect(store.path) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(DataError, match="has version 7, this release reads 1"):
        LabelStore(tmp_path)
