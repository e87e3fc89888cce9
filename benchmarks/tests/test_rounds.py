"""The pure parts of benchmarks/rounds.py: how prompts are parted, and the table."""

import itertools

from benchmarks.rounds import ARMS, prompts_of, shown, utility


def test_arms_have_the_same_prompts_in_parts_and_seeds_have_others() -> None:
    whole = prompts_of(ARMS["one"], 1)[0]
    for arm in ARMS.values():
        parts = prompts_of(arm, 1)
        assert len(parts) == arm.rounds
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert list(itertools.chain(*parts)) == whole
    assert prompts_of(ARMS["one"], 0)[0] != whole


def test_the_judge_is_the_worlds_utility() -> None:
    good, bad = utility(
        ["review of the hotel :"] * 2, [" the room was superb .", " the room was awful ."]
    )
    assert good > 0 > bad


def test_the_table_has_means_and_deviations() -> None:
    def measures(score: float) -> dict[str, float]:
        return {"score": score, "kl": 1.0, "finished": 1.0}

    runs = [{"first": measures(0.0), "last": measures(x), "labels": 10} for x in (1.0, 3.0)]
    lines = shown({"two": runs}).splitlines()
    assert lines[2] == "| initial | 0 | 0.00 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 |"
    assert lines[3] == "| two | 10 | 2.00 ± 1.41 | 1.00 ± 0.00 | 1.00 ± 0.00 |"
