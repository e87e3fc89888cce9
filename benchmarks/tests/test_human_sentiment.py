"""The pure parts of benchmarks/human_sentiment: reading, splitting, pairing, cutting, counting."""

import itertools
import json
import math
import random
import re
import shlex
from pathlib import Path
from statistics import fmean

import pytest
import yaml

from benchmarks.human_sentiment import labelled, rounds, sweep
from benchmarks.human_sentiment.corpus import (
    DOMAINS,
    RATINGS_FILE,
    TEXT_FILE,
    Sentence,
    merge_copies,
    read_sentences,
    split_raters,
    split_sentences,
)
from benchmarks.human_sentiment.download import Package, fetch
from benchmarks.human_sentiment.measures import (
    accuracy_by_difference,
    best_of_n,
    judge_samples,
    summarize,
)
from benchmarks.human_sentiment.prepare import Recipe, build_rows, write_jsonl
from benchmarks.human_sentiment.raters import RatedPair, half_of_raters, known_opinions, one_rater
from benchmarks.human_sentiment.rows import (
    PREFIX,
    Row,
    cut_after_words,
    list_rows,
    p_preferred,
    pair_row,
    pair_rows,
    prompt_rows,
    rater_scatter,
)
from lit_rlhf.cli import main
from lit_rlhf.seeding import generator

HERE = Path(__file__).parents[1] / "human_sentiment"
ADJECTIVES = ("warm", "cold", "odd", "sharp", "dull", "sly", "loud", "soft")


def sentences(number: int) -> list[Sentence]:
    def text(i: int) -> str:
        words = " ".join(ADJECTIVES[(i // 8**place) % 8] for place in range(4))
        return f"A {words} film of the kind number {i}."

    return [
        Sentence(str(i), text(i), tuple((i * 7 + j * 5) % 9 - 4 for j in range(15)))
        for i in range(number)
    ]


def test_share_of_rater_pairs_equals_counting_them() -> None:
    for first, second in [
        ((3, 1, 1), (1, 0)),
        ((-4, 4), (0,)),
        ((2, 2), (2, 2)),
        ((4,), (-4, -4, -4)),
    ]:
        pairs = list(itertools.product(first, second))
        counted = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
        assert p_preferred(first, second) == counted
        assert p_preferred(second, first) == pytest.approx(1 - counted)


def test_pair_puts_the_higher_mean_first_whatever_the_order() -> None:
    good, bad = Sentence("1", "Good.", (3, 2, 4)), Sentence("2", "Bad.", (-1, 0, 3))
    row = pair_row(bad, good)
    assert row == pair_row(good, bad)
    assert (row["prompt"], row["chosen"], row["rejected"]) == (PREFIX, " Good.", " Bad.")
    assert row["margin"] == pytest.approx(3 - 2 / 3)
    assert row["p_chosen"] == p_preferred((3, 2, 4), (-1, 0, 3))


def test_each_sentence_is_in_as_many_pairs_as_there_are_rounds() -> None:
    rows = pair_rows(sentences(20), rounds=3, seed=0)
    texts = [row[side] for row in rows for side in ("chosen", "rejected")]
    assert len(rows) == 30
    assert {texts.count(text) for text in texts} == {3}
    assert rows == pair_rows(sentences(20), rounds=3, seed=0)
    assert rows != pair_rows(sentences(20), rounds=3, seed=1)


def test_lists_hold_each_sentence_once_a_round_with_its_mean() -> None:
    everything = sentences(20)
    rows = list_rows(everything, size=4, rounds=3, seed=0)
    texts = [text for row in rows for text in row["completions"]]
    assert len(rows) == 15
    assert {texts.count(text) for text in texts} == {3}
    means = {f" {sentence.text}": sentence.mean for sentence in everything}
    assert all(row["scores"] == [means[text] for text in row["completions"]] for row in rows)
    assert rows == list_rows(everything, size=4, rounds=3, seed=0)
    assert {len(row["completions"]) for row in list_rows(everything, size=8, rounds=1, seed=1)} == {
        8
    }


def test_the_scatter_of_raters_is_recovered() -> None:
    """Of raters whose opinions are normal around the mean."""
    draw = random.Random(0)

    def ratings(mean: float) -> tuple[int, ...]:
        spread = (draw.gauss(mean, 1.2) for _ in range(400))
        return tuple(max(-4, min(4, round(value))) for value in spread)

    rated = [Sentence(str(i), f"{i}", ratings(draw.uniform(-2, 2))) for i in range(200)]
    # Phi(d / (1.2 sqrt 2)) is nearest to sigmoid(1.7 d / (1.2 sqrt 2))
    assert rater_scatter(rated, seed=0) == pytest.approx(1.2 * 2**0.5 / 1.7, rel=0.08)


def test_no_sentence_is_on_both_sides_and_sides_stay() -> None:
    everything = sentences(400)
    train, held = split_sentences(everything, 0.1)
    assert not {s.identity for s in train} & {s.identity for s in held}
    assert len(train) + len(held) == 400
    assert 20 <= len(held) <= 62
    again, _ = split_sentences(reversed(everything[:200]), 0.1)
    assert {s.key for s in again} <= {s.key for s in train}


def test_copies_are_merged_whatever_their_spelling() -> None:
    merged = merge_copies(
        [
            Sentence("1", "A fine film!", (1, 2)),
            Sentence("2", "a  fine film", (3,)),
            Sentence("3", "...", (0,)),
        ]
    )
    assert merged == [Sentence("1", "A fine film!", (1, 2, 3))]


def test_groups_of_raters_are_disjoint_and_complete() -> None:
    sentence = Sentence("1", "x", tuple(range(-4, 4)))
    reward, gold = split_raters(sentence, 3)
    assert gold.ratings == (-2, 1)
    assert sorted(reward.ratings + gold.ratings) == sorted(sentence.ratings)


@pytest.mark.parametrize("words", [1, 3, 50])
def test_cutting_loses_nothing_but_spacing(words: int) -> None:
    text = "An  odd film of rare charm"
    first, rest = cut_after_words(text, words)
    assert first + rest == " ".join(text.split())
    assert rest == "" or rest.startswith(" ")


def test_prompts_have_first_words_and_leave_enough() -> None:
    rows = prompt_rows(
        [*sentences(50), Sentence("s", "Too short.", (1,))], words=(2, 4), min_rest=5, seed=0
    )
    assert len(rows) == 50
    for row in rows:
        shown = str(row["prompt"]).removeprefix(f"{PREFIX} ").split()
        assert 2 <= len(shown) <= 4
        assert len(str(row["completion"]).split()) >= 5
    assert {len(str(row["prompt"]).split()) for row in rows} == {4, 5, 6}


def test_data_sets_share_no_sentence_between_sides() -> None:
    rows = build_rows(sentences(300), Recipe())
    lists = rows["lists_train"] + rows["gold_lists_train"]
    train = {text for row in lists for text in row["completions"]}
    held = {text for row in rows["lists_heldout"] for text in row["completions"]}
    held |= {row[side] for row in rows["pairs_heldout"] for side in ("chosen", "rejected")}
    assert held
    assert not train & held
    whole = {
        str(r["prompt"]).removeprefix(PREFIX) + str(r["completion"])
        for r in rows["demonstrations_train"]
    }
    assert whole <= train
    assert [r["prompt"] for r in rows["prompts_heldout"]] == [
        r["prompt"] for r in rows["demonstrations_heldout"]
    ]


def write_corpus(folder: Path, ratings: str, texts: str, domain: str = "films") -> Path:
    (folder / RATINGS_FILE.format(DOMAINS[domain])).write_text(ratings, encoding="latin-1")
    (folder / TEXT_FILE.format(DOMAINS[domain])).write_text(texts, encoding="latin-1")
    return folder


def test_reading_the_corpus(tmp_path: Path) -> None:
    folder = write_corpus(
        tmp_path,
        "1\t1.5\t0.5\t[1, 2]\n2\t-1\t0\t[-1]\n",
        "2\t-1\tWhat a  caf\xe9.\n\n1\t1.5\tFine film.\n",
    )
    assert read_sentences(folder) == [
        Sentence("2", "What a caf\xe9.", (-1,)),
        Sentence("1", "Fine film.", (1, 2)),
    ]


def test_another_domain_is_read_though_a_file_begins_with_a_byte_order_mark(tmp_path: Path) -> None:
    marked = "\xef\xbb\xbf1_1\t1.5\t0.5\t[1, 2]\n"
    folder = write_corpus(tmp_path, marked, "1_1\t1.5\tA phone.\n", "products")
    assert read_sentences(folder, "products") == [Sentence("1_1", "A phone.", (1, 2))]


@pytest.mark.parametrize(
    ("ratings", "texts", "message"),
    [
        ("1\t1\t0\t[1]\n", "1\t1\n", r"GroundTruth.txt, line 1: 2 tab-separated columns where 3"),
        ("1\t1\t0\t[1]\n", "2\t1\tx\n", r"ids in only one of .*: \['1', '2'\]"),
        ("1\t1\t0\t[5]\n", "1\t1\tx\n", r"id 1: ratings \(5,\) aren't numbers from -4 to 4"),
    ],
)
def test_a_broken_corpus_is_refused(tmp_path: Path, ratings: str, texts: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_sentences(write_corpus(tmp_path, ratings, texts))


def test_a_file_with_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"x.zip has SHA-256 .* delete it to fetch it afresh"):
        fetch(Package("x==1", "x.zip", "0" * 64), tmp_path)


def test_jsonl_is_written_whole(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "deep" / "rows.jsonl", [{"prompt": "caf\xe9"}, {"prompt": "b"}])
    lines = (tmp_path / "deep" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["caf\xe9", "b"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["rows.jsonl"]


def test_accuracy_counts_pairs_from_each_threshold_on() -> None:
    table = accuracy_by_difference([1.0, -1.0, 0.0, 2.0, -2.0], [0.2, 0.5, 0.7, 1.0, 0.0])
    assert table["0.0"] == {"accuracy": 2.5 / 4, "pairs": 4}
    assert table["0.5"] == {"accuracy": 1.5 / 3, "pairs": 3}
    assert table["1.0"] == {"accuracy": 1.0, "pairs": 1}
    assert math.isnan(accuracy_by_difference([], [])["1.0"]["accuracy"])


class LengthJudge:
    def polarity_scores(self, text: str) -> dict[str, float]:
        return {"compound": float(len(text.split()))}


def test_the_judge_reads_the_sentence_without_prefix() -> None:
    samples = [
        {
            "prompt": f"{PREFIX} An odd",
            "response": " film.",
            "log_ratio": 1.0,
            "tokens": 2,
            "finished": True,
            "reward": 0.5,
        },
        {
            "prompt": f"{PREFIX} A",
            "response": " dull film.",
            "log_ratio": 2.0,
            "tokens": 4,
            "finished": False,
            "reward": 1.5,
        },
    ]
    judge_samples(samples, LengthJudge())
    assert [(row["gold"], row["gold_response"]) for row in samples] == [(3.0, 1.0), (3.0, 2.0)]
    summary = summarize(samples, ["reward"])
    assert (summary["gold"], summary["kl"], summary["tokens"], summary["finished"]) == (
        3.0,
        1.5,
        3.0,
        0.5,
    )
    assert summary["reward"] == 1.0
    assert summary["kl_stderr"] == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["sft.yaml", "reward.yaml", "policy.yaml"])
def test_configurations_read_what_prepare_writes(name: str) -> None:
    data = yaml.safe_load((HERE / name).read_text())["data"]["init_args"]
    written = {
        f"runs/human_sentiment/data/{key}.jsonl" for key in build_rows(sentences(60), Recipe())
    }
    used = re.findall(r"runs/human_sentiment/data/\S+", json.dumps(data).replace('"', " "))
    assert len(used) >= ("val" in data) + 1
    assert set(used) <= written


def test_readme_names_files_that_exist() -> None:
    text = (HERE / "README.md").read_text()
    words = {
        word
        for line in text.splitlines()
        if line.startswith(("bash", "lit-rlhf"))
        for word in shlex.split(line, comments=True)
    }
    files = {word for word in words if word.startswith("benchmarks/")}
    assert files
    assert all((HERE.parents[1] / file).is_file() for file in files)


def test_a_rater_is_held_against_the_others_alone() -> None:
    """Against a slow count: its own vote is in no mean that it is judged by."""
    for first, second in [((3, 1, -2), (0, 2)), ((4, 4, -4, 1), (1, 1, 0)), ((1, 1), (1, 1))]:
        worth = []
        for i, j in itertools.product(range(len(first)), range(len(second))):
            others = [fmean(x[:k] + x[k + 1 :]) for x, k in ((first, i), (second, j))]
            said, true = first[i] - second[j], others[0] - others[1]
            worth.append(0.5 if said * true == 0 else float(said * true > 0))
        assert one_rater(first, second) == pytest.approx(fmean(worth))


def test_what_raters_reach_is_recovered_from_their_ratings() -> None:
    """Of raters who scatter around opinions that are known here: by simulation with many more of them."""
    draw = random.Random(0)
    opinions = [(draw.gauss(0, 0.6), draw.gauss(0, 0.6)) for _ in range(1500)]

    def rated(opinion: float) -> tuple[int, ...]:
        return tuple(round(100 * draw.gauss(opinion, 1)) for _ in range(16))

    asked = [(rated(one), rated(other)) for one, other in opinions]
    turned = [fmean(one) < fmean(other) for one, other in asked]
    pairs = [
        RatedPair(("a", "b"), *((other, one) if turn else (one, other)), 0.5)
        for (one, other), turn in zip(asked, turned, strict=True)
    ]
    true = [((one > other) != turn) for (one, other), turn in zip(opinions, turned, strict=True)]
    known = known_opinions(pairs)
    assert fmean(known) == pytest.approx(fmean(true), abs=0.02)
    # eight of sixteen raters against the other eight: P(sign agrees) of two means around one opinion
    halves = fmean(half_of_raters(p.first, p.second, generator(0, "t"), 20) for p in pairs[:300])
    assert fmean(one_rater(p.first, p.second) for p in pairs[:300]) < halves < fmean(known)


def test_arms_of_the_rounds_have_equal_prompts_and_options_that_parse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Row] = [{"prompt": f"{PREFIX} {i}", "mean": 0.0} for i in range(9)]
    write_jsonl(tmp_path / "data" / "prompts_train.jsonl", rows)
    for arm, beta in (("three", 0.1), ("two", 0.1), ("one", 0.1), ("weak", 0.05)):
        rounds.write_prompts(arm, 3, tmp_path, 8)
        options = rounds.options_of(arm, 3, tmp_path)
        method = options["method"]["init_args"]
        files = method["feedback"]["init_args"]["prompts"]
        assert len(files) == options["rounds"]
        read = [line for file in files for line in Path(file).read_text("utf-8").splitlines()]
        assert len(set(read)) == len(read) == 8
        loss = method["training"]["options"]["model"]["init_args"]["loss"]
        assert loss["init_args"]["beta"] == beta
        assert "runs/human_sentiment" not in yaml.safe_dump(options)
        (tmp_path / f"{arm}.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
        with pytest.raises(SystemExit, match="0"):
            main(["iterate", "-c", str(tmp_path / f"{arm}.yaml"), "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["run_dir"] == f"{tmp_path}/rounds/3/{arm}"


def test_labels_are_learned_from_and_held_against_raters_in_their_own_direction() -> None:
    lists = [
        {"prompt": PREFIX, "completions": ["bad", "good", "odd", "dull"], "scores": [-2, 2, 0, 0]}
    ]
    pairs = labelled.pairs_of(lists, 9)  # nobody prefers odd to dull
    assert [(pair["chosen"], pair["rejected"], pair["margin"]) for pair in pairs] == [
        ("good", "bad", 4)
    ]
    pairs += [{"prompt": PREFIX, "chosen": "warm", "rejected": "sly", "margin": 0.25}] * 2
    (one, *_) = labelled.by_raters(pairs).rows(pairs)
    assert one["p_chosen"] == pytest.approx(1 / (1 + math.exp(-4 / 0.82)))
    worth = {"good": 1.0, "bad": 3.0, "warm": 2.0, "sly": 2.0}
    labels = labelled.by_scores(lambda _, texts: [worth[text] for text in texts], pairs[:2])
    assert labels.rows(pairs[:2]) == [{"prompt": PREFIX, "chosen": "bad", "rejected": "good"}]
    assert labels.agreement(pairs[:2]) == {"0.0": 0.25, "0.5": 0.0}  # the tie counts half
    assert labelled.Labels([4.0, 0.25, -1.0]).agreement(pairs) == {
        "0.0": pytest.approx(2 / 3),
        "0.5": 1.0,
    }


def test_best_of_n_takes_the_best_of_the_first_n_of_each_prompt() -> None:
    samples = [{"reward": reward} for reward in (1.0, 3.0, 9.0, 2.0, 5.0, 4.0)]
    assert best_of_n(samples, group=3, n=2) == [{"reward": 3.0}, {"reward": 5.0}]
    assert best_of_n(samples, group=3, n=3) == [{"reward": 9.0}, {"reward": 5.0}]


@pytest.mark.parametrize("name", sweep.METHODS)
def test_a_run_of_the_frontier_is_a_command_that_parses(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beta = 0.625  # of no file
    words = sweep.command(name, beta, tmp_path, tmp_path / "root", "float32", 2)
    with pytest.raises(SystemExit, match="0"):
        main([*words[3:], "--print_config"])
    shown = capsys.readouterr().out
    options = yaml.safe_load(shown)["model"]["init_args"]
    found = options
    for key in sweep.METHODS[name].option.split("."):
        found = found[key]
    assert found == beta
    assert options["backbone"]["dtype"] == "float32"
    assert "runs/human_sentiment" not in shown
