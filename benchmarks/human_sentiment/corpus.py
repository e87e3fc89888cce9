"""Sentences and their human ratings: reading, cleaning, and splitting by sentence and by rater.

The corpus is that of Hutto and Gilbert (ICWSM 2014): each sentence was rated by 15 or more people from -4 (extremely
negative) to 4 (extremely positive).
"""

import ast
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

DOMAINS = {
    "films": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
    "tweets": "tweets",
}
"""What the sentences are from, and how their files' names begin."""
RATINGS_FILE, TEXT_FILE = "{}_anonDataRatings.txt", "{}_GroundTruth.txt"
_MARK = "\xef\xbb\xbf"  # UTF-8's byte order mark, which one of the files has, read as latin-1


@dataclass(frozen=True)
class Sentence:
    """A sentence and what each rater gave it."""

    key: str
    text: str
    ratings: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean rating, -4 to 4."""
        return fmean(self.ratings)

    @property
    def identity(self) -> str:
        """The text without case, punctuation and spacing: equal for copies of one sentence."""
        return " ".join(re.findall(r"\w+", self.text.lower()))


def read_sentences(folder: Path, domain: str = "films") -> list[Sentence]:
    """Read sentences with their ratings; copies of a sentence are merged into one with all ratings.

    Args:
        folder: The unpacked `hutto_ICWSM_2014` directory.
        domain: One of `DOMAINS`.

    Raises:
        ValueError: A line has another number of columns, an id occurs in one file only, or a rating is out of range.
    """
    rated, written = (folder / name.format(DOMAINS[domain]) for name in (RATINGS_FILE, TEXT_FILE))
    ratings = {key: _parse_ratings(value, rated, key) for key, _, _, value in _rows(rated, 4)}
    texts = {key: text for key, _, text in _rows(written, 3)}
    if lonely := ratings.keys() ^ texts.keys():
        raise ValueError(
            f"{folder}: ids in only one of {rated.name} and {written.name}: {sorted(lonely)[:5]}"
        )
    return merge_copies(
        Sentence(key, " ".join(text.split()), ratings[key]) for key, text in texts.items()
    )


def merge_copies(sentences: Iterable[Sentence]) -> list[Sentence]:
    """Join the ratings of sentences with the same words, so that no sentence can be on two sides of a split."""
    merged: dict[str, Sentence] = {}
    for sentence in sentences:
        if not sentence.identity:
            continue
        first = merged.setdefault(sentence.identity, replace(sentence, ratings=()))
        ratings = first.ratings + sentence.ratings
        merged[sentence.identity] = replace(first, ratings=ratings)
    return list(merged.values())


def split_sentences(
    sentences: Iterable[Sentence], held_out: float
) -> tuple[list[Sentence], list[Sentence]]:
    """Split by a hash of the words: (training, held-out). The side of a sentence depends on nothing but its words.

    Args:
        sentences: Without copies, see `merge_copies`.
        held_out: Share to hold out, in (0, 1).
    """
    sides: tuple[list[Sentence], list[Sentence]] = ([], [])
    for sentence in sentences:
        digest = hashlib.blake2b(sentence.identity.encode(), digest_size=8).digest()
        sides[int.from_bytes(digest, "little") / 2**64 < held_out].append(sentence)
    return sides


def split_raters(sentence: Sentence, every: int) -> tuple[Sentence, Sentence]:
    """The same sentence as seen by two disjoint groups of raters: (reward raters, gold raters).

    Args:
        sentence: Rated by at least `every` people.
        every: Each `every`-th rating goes to the gold raters, the others to the reward raters; 3 means two thirds
            and one third.
    """
    gold = sentence.ratings[every - 1 :: every]
    numbered = enumerate(sentence.ratings)
    reward = tuple(rating for place, rating in numbered if place % every != every - 1)
    return replace(sentence, ratings=reward), replace(sentence, ratings=gold)


def _rows(path: Path, columns: int) -> Iterable[list[str]]:
    text = path.read_text(encoding="latin-1").removeprefix(_MARK)
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != columns:
            raise ValueError(
                f"{path}, line {number}: {len(cells)} tab-separated columns where {columns} are expected"
            )
        yield cells


def _parse_ratings(cell: str, path: Path, key: str) -> tuple[int, ...]:
    ratings = tuple(int(value) for value in ast.literal_eval(cell))
    if not ratings or not all(-4 <= rating <= 4 for rating in ratings):
        raise ValueError(f"{path.name}, id {key}: ratings {ratings} aren't numbers from -4 to 4")
    return ratings
