"""Pairs and votes on disk: one SQLite file, written ahead, so that a vote that was answered is never lost."""

import json
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.feedback.pairs import Pair
from lit_rlhf.options import check_option
from lit_rlhf.seeding import stable_hash

Verdict: TypeAlias = Literal["first", "second", "tie", "skip", "flag"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
LEASE_SECONDS = 900.0
"""For how long a pair that a rater looks at counts as theirs, so that two raters at once get different ones."""

_VERSION = 1
_SCHEMA = """
CREATE TABLE pairs (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, content TEXT NOT NULL, uncertainty REAL, place INTEGER NOT NULL
);
CREATE TABLE votes (
    id INTEGER PRIMARY KEY AUTOINCREMENT, pair INTEGER NOT NULL REFERENCES pairs, rater TEXT NOT NULL,
    verdict TEXT NOT NULL, swapped INTEGER NOT NULL, attributes TEXT NOT NULL, comment TEXT NOT NULL, time REAL NOT NULL
);
CREATE INDEX votes_of_rater ON votes (pair, rater);
CREATE TABLE shown (rater TEXT PRIMARY KEY, pair INTEGER NOT NULL REFERENCES pairs, until REAL NOT NULL);
CREATE TABLE secret (value TEXT NOT NULL);
CREATE VIEW current AS SELECT * FROM votes WHERE id IN (SELECT max(id) FROM votes GROUP BY pair, rater);
"""


@dataclass(frozen=True)
class Vote:
    """What a rater said of a pair.

    Args:
        pair: The pair's number in the store.
        rater: Who.
        verdict: The better answer, a tie, a pair passed by (skip) or one that is unfit (flag).
        swapped: The second answer was shown as A.
        attributes: Per attribute which answer is better: first, second or tie.
        comment: Free text.
        number: Counts all votes; 0 before it is stored.
    """

    pair: int
    rater: str
    verdict: Verdict
    swapped: bool = False
    attributes: Mapping[str, Verdict] = field(default_factory=dict)
    comment: str = ""
    number: int = 0


class LabelStore:
    """The pairs of one labelling and the votes on them, in `labels.sqlite` of a directory.

    Votes are only ever added: a rater's last vote on a pair is the one that counts. Any number of threads and processes
    may use a directory at once.

    Args:
        directory: Where the file lies or is to lie.
        raters_per_pair: How many raters judge each pair, 1 or more; those that skip it don't count.
        seed: Of the order of the pairs and of which answer is shown as A.
        create: Whether to begin a new labelling where there is none.

    Raises:
        ConfigurationError: An option is out of range, or there is no labelling in the directory.
        DataError: The file is no labelling.
    """

    def __init__(
        self, directory: str | Path, raters_per_pair: int = 2, seed: int = 0, *, create: bool = True
    ) -> None:
        check_option(raters_per_pair >= 1, self, "raters_per_pair", raters_per_pair, "1 or more")
        self.path = Path(directory).expanduser() / "labels.sqlite"
        self.raters_per_pair, self.seed = raters_per_pair, seed
        if not create and not self.path.is_file():
            raise ConfigurationError(
                f"There are no labels in {directory}: no file {self.path.name}."
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._transaction() as database:
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    for statement in _SCHEMA.split(";\n"):
                        database.execute(statement)
                    database.execute("INSERT INTO secret VALUES (?)", (secrets.token_urlsafe(32),))
                    database.execute(f"PRAGMA user_version = {_VERSION}")
        except (OSError, sqlite3.OperationalError) as error:
            raise ConfigurationError(f"Labels can't be kept in {directory}: {error}.") from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path} is no file of labels, or a torn one: {error}.") from error
        if version not in (0, _VERSION):
            raise DataError(
                f"{self.path} has version {version}, this release reads {_VERSION}: take another directory."
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")  # on disk when COMMIT returns
            database.execute("BEGIN IMMEDIATE")
            yield database
            database.execute("COMMIT")
        finally:  # what wasn't committed is rolled back
            database.close()

    @property
    def secret(self) -> str:
        """What forms carry to prove that a page of this labelling sent them; the same after a restart."""
        with self._transaction() as database:
            (value,) = database.execute("SELECT value FROM secret").fetchone()
        return str(value)

    def add(self, pairs: Iterable[Pair]) -> int:
        """Add the pairs that aren't there yet, with the order by seed and uncertainty brought up to date for all given.

        Returns:
            How many were new.
        """
        with self._transaction() as database:
            (before,) = database.execute("SELECT count(*) FROM pairs").fetchone()
            places = ((p, stable_hash(self.seed, "order", p.key)) for p in pairs)
            database.executemany(
                "INSERT INTO pairs (key, content, uncertainty, place) VALUES (?, ?, ?, ?) ON CONFLICT (key) "
                "DO UPDATE SET uncertainty = excluded.uncertainty, place = excluded.place",
                ((p.key, p.content, p.uncertainty, place) for p, place in places),
            )
            (after,) = database.execute("SELECT count(*) FROM pairs").fetchone()
        return int(after - before)

    def pair(self, number: int) -> Pair | None:
        """A pair by its number; None where there is none."""
        with self._transaction() as database:
            row = database.execute(
                "SELECT content, uncertainty FROM pairs WHERE id = ?", (number,)
            ).fetchone()
        return None if row is None else Pair.of(*row)

    def next_pair(self, rater: str) -> int | None:
        """The pair that a rater is to judge now, the same until they did; None where none is left for them.

        Pairs with fewest votes first (those that others look at count as if they had voted), of these the most
        uncertain, of these by seed; none that somebody flagged. When only pairs are left that others look at, they are
        given out too.
        """
        now = time.time()
        with self._transaction() as database:
            row = (
                database.execute(
                    "SELECT pair FROM shown WHERE rater = :rater AND until > :now AND NOT EXISTS "
                    "(SELECT 1 FROM votes WHERE votes.pair = shown.pair AND votes.rater = shown.rater)",
                    {"rater": rater, "now": now},
                ).fetchone()
                or database.execute(
                    """
                SELECT pairs.id FROM pairs
                LEFT JOIN (SELECT pair, count(*) AS n FROM current WHERE verdict != 'skip' GROUP BY pair) AS judged
                    ON judged.pair = pairs.id
                LEFT JOIN (SELECT pair, count(*) AS n FROM shown WHERE until > :now AND rater != :rater
                    AND NOT EXISTS (SELECT 1 FROM votes WHERE votes.pair = shown.pair AND votes.rater = shown.rater)
                    GROUP BY pair) AS taken
                    ON taken.pair = pairs.id
                WHERE coalesce(judged.n, 0) < :wanted
                    AND pairs.id NOT IN (SELECT pair FROM current WHERE verdict = 'flag')
                    AND NOT EXISTS (SELECT 1 FROM votes WHERE votes.pair = pairs.id AND votes.rater = :rater)
                ORDER BY coalesce(judged.n, 0) + coalesce(taken.n, 0) >= :wanted,
                    coalesce(judged.n, 0) + coalesce(taken.n, 0), uncertainty DESC, place
                LIMIT 1
                """,
                    {"rater": rater, "now": now, "wanted": self.raters_per_pair},
                ).fetchone()
            )
            if row is None:
                return None
            database.execute(
                "INSERT INTO shown VALUES (?, ?, ?) "
                "ON CONFLICT (rater) DO UPDATE SET pair = excluded.pair, until = excluded.until",
                (rater, row[0], now + LEASE_SECONDS),
            )
        return int(row[0])

    def is_swapped(self, number: int, rater: str) -> bool:
        """Whether a rater sees the second answer of a pair as A: by a coin of the seed, the pair and the rater."""
        return bool(stable_hash(self.seed, "swap", number, rater) & 1)

    def vote(self, vote: Vote) -> None:
        """Store a vote; it is on disk when this returns. A later one of the same rater on the pair corrects it.

        Raises:
            DataError: A verdict or an attribute's value that there isn't, or no such pair.
        """
        known = {"first", "second", "tie"}
        if vote.verdict not in VERDICTS or not set(vote.attributes.values()) <= known:
            raise DataError(f"{vote} is no vote: verdicts are {', '.join(VERDICTS)}.")
        if self.pair(vote.pair) is None:
            raise DataError(f"There is no pair {vote.pair} in {self.path}.")
        with self._transaction() as database:
            database.execute(
                "INSERT INTO votes (pair, rater, verdict, swapped, attributes, comment, time) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(vote.pair, vote.rater, vote.verdict, vote.swapped),
                    *(json.dumps(dict(vote.attributes)), vote.comment, time.time()),
                ),
            )

    def votes(self, rater: str | None = None, pair: int | None = None) -> list[Vote]:
        """The votes that count (each rater's last on each pair), in the order in which they were given.

        Args:
            rater: Only theirs.
            pair: Only those on it.
        """
        with self._transaction() as database:
            rows = database.execute(
                "SELECT pair, rater, verdict, swapped, attributes, comment, id FROM current "
                "WHERE (:rater IS NULL OR rater = :rater) AND (:pair IS NULL OR pair = :pair) ORDER BY id",
                {"rater": rater, "pair": pair},
            ).fetchall()
        return [
            Vote(pair, rater, verdict, bool(swapped), json.loads(attributes), comment, number)
            for pair, rater, verdict, swapped, attributes, comment, number in rows
        ]

    def pairs(self) -> dict[int, Pair]:
        """All pairs by number."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT id, content, uncertainty FROM pairs ORDER BY id"
            ).fetchall()
        return {number: Pair.of(content, uncertainty) for number, content, uncertainty in rows}

    def counts(self, rater: str) -> tuple[int, int]:
        """How many pairs a rater has voted on, and how many there are for them: those done and those still to ask."""
        with self._transaction() as database:
            (voted,) = database.execute(
                "SELECT count(*) FROM current WHERE rater = ?", (rater,)
            ).fetchone()
            (left,) = database.execute(
                "SELECT count(*) FROM pairs WHERE id NOT IN (SELECT pair FROM votes WHERE rater = :rater) AND "
                "(SELECT count(*) FROM current WHERE pair = pairs.id AND verdict != 'skip') < :wanted "
                "AND id NOT IN (SELECT pair FROM current WHERE verdict = 'flag')",
                {"rater": rater, "wanted": self.raters_per_pair},
            ).fetchone()
        return int(voted), int(voted + left)
