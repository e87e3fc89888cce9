"""What votes come to: agreement between raters, and preference data with soft labels."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_rlhf.errors import DataError
from lit_rlhf.extras import importing_extra
from lit_rlhf.feedback.pairs import Pair
from lit_rlhf.feedback.store import LabelStore, Vote
from lit_rlhf.files import write_text

_SAYS = {"first": 1.0, "tie": 0.5, "second": 0.0}


def agreement(votes: Iterable[Vote]) -> float | None:
    r"""Krippendorff's $\alpha$ of the verdicts, on the ordinal scale first answer, tie, second answer.

    $\alpha = 1 - D_o / D_e$, observed over expected disagreement: 1 is full agreement, 0 what chance gives, below 0
    disagreement by system. Pairs with one vote say nothing; skips and flags count as missing.

    Args:
        votes: Each rater's vote on each pair.

    Returns:
        None where it isn't defined: no pair has two votes, or all votes are the same.
    """
    said = [vote for vote in votes if vote.verdict in _SAYS]
    pairs = {pair: i for i, pair in enumerate(sorted({vote.pair for vote in said}))}
    raters = {rater: i for i, rater in enumerate(sorted({vote.rater for vote in said}))}
    table = np.full((len(raters), len(pairs)), np.nan)  # (raters, pairs)
    for vote in said:
        table[raters[vote.rater], pairs[vote.pair]] = _SAYS[vote.verdict]
    pairable = table[:, (~np.isnan(table)).sum(0) > 1]
    if len(np.unique(pairable[~np.isnan(pairable)])) < 2:
        return None
    with importing_extra("annotate", "Annotating"):
        import krippendorff
    return float(krippendorff.alpha(pairable, level_of_measurement="ordinal"))


@dataclass(frozen=True)
class Progress:
    """How far a labelling is.

    Args:
        pairs: All of them.
        done: Pairs with as many judgements as wanted, and those that somebody flagged.
        verdicts: How many votes of each kind.
        raters: How many votes of each rater.
        alpha: See `agreement`.
        shown_first: How often the answer shown as A was preferred, of the votes that prefer one. None: no such vote.
    """

    pairs: int
    done: int
    verdicts: Mapping[str, int]
    raters: Mapping[str, int]
    alpha: float | None
    shown_first: float | None


def progress(store: LabelStore) -> Progress:
    """Count what is done, and measure agreement and the bias towards what is shown first."""
    votes = store.votes()
    judged = Counter(vote.pair for vote in votes if vote.verdict != "skip")
    decided = [
        (vote.verdict == "second") == vote.swapped
        for vote in votes
        if vote.verdict in ("first", "second")
    ]
    flagged = {vote.pair for vote in votes if vote.verdict == "flag"}
    full = {pair for pair, count in judged.items() if count >= store.raters_per_pair}
    return Progress(
        pairs=len(store.pairs()),
        done=len(full | flagged),
        verdicts=Counter(vote.verdict for vote in votes),
        raters=Counter(vote.rater for vote in votes),
        alpha=agreement(votes),
        shown_first=sum(decided) / len(decided) if decided else None,
    )


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and what it left out.

    Args:
        path: The file.
        rows: Pairs written.
        tied: Of these, those with `p_chosen` 0.5.
        skipped: Pairs left out as all who saw them skipped them.
        flagged: Pairs left out as somebody flagged them.
        unseen: Pairs left out as nobody has voted on them yet.
        alpha: Agreement between the raters, see `agreement`.
    """

    path: Path
    rows: int
    tied: int
    skipped: int
    flagged: int
    unseen: int
    alpha: float | None

    def __str__(self) -> str:
        """One line."""
        alpha = "not defined yet" if self.alpha is None else f"{self.alpha:.3f}"
        return (
            f"{self.path}: {self.rows} pairs, {self.tied} of them tied; left out: {self.flagged} flagged, "
            f"{self.skipped} skipped, {self.unseen} without a vote. Agreement (Krippendorff's alpha): {alpha}."
        )


def export_preferences(store: LabelStore, path: str | Path) -> Exported:
    r"""Write the votes as JSONL that `PreferenceDataModule` reads with its defaults.

    Columns `prompt`, `chosen`, `rejected`, and `p_chosen`, the share of raters that prefer `chosen`, ties counting half
    to each side: `SoftLabelDPO` and `BradleyTerry` take it as the soft label. `chosen` is what more raters prefer. Also
    `votes` (how many), `attributes` (the same share for each attribute) and `comments`. Pairs that somebody flagged,
    and those without any judgement, are left out and counted.

    Args:
        store: The labelling.
        path: The file to write; a `.jsonl`, so that the library reads it.

    Raises:
        DataError: No pair has a vote that can be exported.
        FileError: The file can't be written.
    """
    path = Path(path).expanduser()
    pairs, votes = store.pairs(), store.votes()
    on: dict[int, list[Vote]] = {number: [] for number in pairs}
    for vote in votes:
        on[vote.pair].append(vote)
    flagged = {number for number, given in on.items() if any(v.verdict == "flag" for v in given)}
    judged = {
        number: [vote for vote in given if vote.verdict in _SAYS]
        for number, given in on.items()
        if number not in flagged
    }
    rows = [_row(pairs[number], given) for number, given in judged.items() if given]
    unseen = sum(not given for given in on.values())
    if not rows:
        raise DataError(
            f"{store.path} has no pair to export: {len(flagged)} flagged, {unseen} of {len(pairs)} without a vote."
        )
    # ASCII: lone surrogates, which JSON may hold, are no UTF-8.
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    tied = sum(row["p_chosen"] == 0.5 for row in rows)
    skipped = len(pairs) - len(rows) - len(flagged) - unseen
    write_text(path, text, "The preferences")
    return Exported(path, len(rows), tied, skipped, len(flagged), unseen, agreement(votes))


def _row(pair: Pair, votes: Sequence[Vote]) -> dict[str, Any]:
    p_first = sum(_SAYS[vote.verdict] for vote in votes) / len(votes)
    chosen, rejected = (pair.first, pair.second) if p_first >= 0.5 else (pair.second, pair.first)
    names = sorted({name for vote in votes for name in vote.attributes})
    shares = {
        name: float(np.mean([_SAYS[v.attributes[name]] for v in votes if name in v.attributes]))
        for name in names
    }
    return {
        "prompt": pair.prompt,
        "chosen": chosen,
        "rejected": rejected,
        "p_chosen": max(p_first, 1 - p_first),
        "votes": len(votes),
        "attributes": {n: p if p_first >= 0.5 else 1 - p for n, p in shares.items()},
        "comments": [vote.comment for vote in votes if vote.comment],
    }
