"""What `inspect` counts, against data whose faults are known by their making, and against counting it slowly."""

import json
import random
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import FileSource, PreferenceDataModule, RowsSource
from lit_rlhf.data.inspection import Inspection, SplitFacts, findings, inspect
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.testing import tiny_preferences

WORDS = [f"w{n}" for n in range(400)]


def text(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count)) + "."


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {"prompt": text(rng, 20), "chosen": text(rng, 30), "rejected": text(rng, 25)}
        for _ in range(count)
    ]


def facts(rows: list[dict[str, Any]], **options: Any) -> SplitFacts:
    options = {"similarity": None, **options}
    return inspect(RowsSource(rows), **options).splits[0]


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def said(found: Inspection) -> str:
    return " ".join(each.text for each in findings(found))


class TestRows:
    def test_left_out_as_in_training_with_reasons(self, tokenizer: PreTrainedTokenizerFast) -> None:
        same = {"prompt": "p", "chosen": "a", "rejected": "a"}
        rows = [*pairs(6), {"prompt": "p"}, same, {**same, "chosen": ""}, same]
        module = PreferenceDataModule(RowsSource(rows), tokenizer=tokenizer, batch_size=1)
        module.prepare_data()
        for options in ({}, {"tokenizer": tokenizer}):
            found = facts(rows, **options)
            assert dict(found.left_out) == module.reports["train"].counts
            assert (found.rows, found.records, found.unit) == (10, 6, "pairs")
        assert found.first_left_out["identical pair"].startswith("rows in memory, row 8")

    def test_origins_with_a_limit_of_their_number(self) -> None:
        rows = [{**row, "domain": f"d{n % 3}"} for n, row in enumerate(pairs(12))]
        rows[0]["chosen"] = rows[0]["rejected"]
        found = facts(rows)
        assert found.by == "domain"
        assert {n: o.records for n, o in found.lengths.origins.items()} == {
            "d0": 3,
            "d1": 4,
            "d2": 4,
        }
        assert dict(found.left_out_by) == {"d0": 1}
        many = facts([{**row, "who": n} for n, row in enumerate(pairs(250))], by="who")
        assert len(many.lengths.origins) == 201
        assert many.lengths.origins["(others)"].records == 50

    def test_groups_of_rows_count_as_pairs(self) -> None:
        rows = [{"prompt": "q", "response": f"a{n}", "helpfulness": n} for n in range(2)]
        found = facts(rows)
        assert (found.rows, found.records, found.unit) == (2, 1, "pairs")
        assert found.labels.values == {"margin": {1.0: 1}}


class TestLengths:
    def test_spread_and_bias(self) -> None:
        rows = [{"prompt": "p" * 10, "chosen": "c" * n, "rejected": "r" * 5} for n in range(1, 101)]
        found = facts(rows).lengths
        chosen = found.parts["chosen"]
        assert (chosen.mean, chosen.median, chosen.p90, chosen.p99, chosen.longest) == (
            50.5,
            50,
            90,
            99,
            100,
        )
        pair = found.pair
        assert pair is not None
        assert (pair.pairs, pair.longer, pair.equal) == (100, 95, 1)
        assert pair.share_longer == 95 / 99
        assert "longer one in 96 % of pairs" in said(inspect(RowsSource(rows), similarity=None))

    def test_tokens_are_those_of_training(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = pairs(20)
        module = PreferenceDataModule(RowsSource(rows), tokenizer=tokenizer, batch_size=1)
        module.prepare_data()
        module.setup("fit")
        found = facts(rows, tokenizer=tokenizer).lengths
        expected = Counter(len(module.rows["train"][i]["completion_ids"][0]) for i in range(20))
        assert (found.unit, found.parts["chosen"].counts) == ("tokens", expected)

    def test_signs_that_chosen_answers_have(self) -> None:
        rows = [
            {"prompt": "p", "chosen": f"- a\n- b{n}", "rejected": f"I'm sorry, {n}"}
            for n in range(40)
        ]
        pair = facts(rows).lengths.pair
        assert pair is not None
        assert pair.features["a list"] == (40, 40)
        assert pair.features["an apology or refusal"] == (40, 0)
        assert pair.features["code"] == (0, 0)

    def test_answers_that_were_cut_at_one_length(self) -> None:
        rows = [
            {"prompt": "p", "chosen": "c" * min(n, 60), "rejected": f"r{n}."}
            for n in range(20, 100)
        ]
        assert "40 chosen answers have exactly 60 characters" in said(
            inspect(RowsSource(rows), similarity=None)
        )


class TestRepetitions:
    def test_exact_ones_and_prompts(self) -> None:
        rows = pairs(10)
        again = [rows[0], rows[0], rows[3], {**rows[4], "chosen": "other"}]
        found = facts([*rows, *again]).doubles
        assert (found.repeated, found.most, found.prompts, found.most_of_prompt) == (3, 3, 10, 3)
        assert set(found.repeated_examples) == {(0, 10), (0, 11), (3, 12)}

    def test_contradictions_of_pairs_rankings_and_labels(self) -> None:
        rows = pairs(10)
        found = facts([*rows, swapped(rows[2]), swapped(rows[2])]).doubles
        assert (found.contradicting, found.contradictions, found.compared_again) == (3, 1, 1)
        assert found.share_agreeing == pytest.approx(1 / 3)
        assert found.contradicting_examples == [(2, 10)]
        ranking = {"prompt": "q", "completions": ["a", "b", "c"], "scores": [3, 2, 1]}
        other = {**ranking, "scores": [3, 1, 2]}
        found = facts([ranking, other]).doubles
        assert (found.contradicting, found.contradictions, found.compared_again) == (2, 1, 3)
        label = {"prompt": "q", "completion": "a", "label": True}
        assert facts([label, {**label, "label": False}]).doubles.contradictions == 1

    @pytest.mark.parametrize("field", [{"p_chosen": 0.2}, {"margin": -1.0}])
    def test_labels_decide_which_answer_is_preferred(self, field: dict[str, float]) -> None:
        row = pairs(1)[0]
        found = facts([row, {**swapped(row), **field}])
        assert found.doubles.contradictions == 0
        assert found.doubles.compared_again == 1
        assert found.labels.reversed == 1

    def test_near_ones_are_those_that_slow_counting_finds(self) -> None:
        rng = random.Random(1)
        rows = pairs(60)
        for row in rows[:20]:
            words = row["chosen"].split()
            for _ in range(rng.choice([1, 20])):
                words[rng.randrange(len(words))] = "changed"
            rows.append({**row, "chosen": " ".join(words)})
        near = facts([*rows, rows[30], swapped(rows[31])], similarity=0.7).near
        assert near is not None

        def runs(row: dict[str, Any]) -> set[tuple[str, ...]]:
            words = " ".join(row.values()).replace(".", "").split()
            return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

        sets = [runs(row) for row in rows]
        alike = [
            len(a & b) / len(a | b) for a, b in combinations(sets, 2)
        ]  # well below or well above: MinHash of 64 sees that
        expected = sum(value > 0.8 for value in alike)
        assert 0 < expected < 20
        assert near.records == expected == near.groups
        assert near.largest == 2

    def test_without_words_only_equals_are_near(self) -> None:
        rows = [{"prompt": "?!", "chosen": "🙂" * n, "rejected": "🙁"} for n in range(1, 9)]
        near = facts(rows, similarity=0.8).near
        assert near is not None
        assert near.records == 0


class TestLeakage:
    def test_rows_of_held_out_sets_that_stand_in_training(self, tmp_path: Path) -> None:
        train, val = pairs(30), pairs(10, seed=1)
        leaked = [
            train[3],
            {"prompt": val[0]["prompt"], "chosen": train[4]["chosen"], "rejected": "x"},
        ]
        held = tmp_path / "val.jsonl"
        held.write_text("".join(json.dumps(row) + "\n" for row in [*val, *leaked]))
        exam = [{"turns": [f"{train[5]['prompt'].upper()}", "And?"], "id": 1}, {"turns": ["Why?"]}]
        found = inspect(
            {"train": RowsSource(train), "val": held},
            against={"exam": RowsSource(exam)},
            similarity=None,
        )
        by = {(leak.split, leak.other): leak for leak in found.leaks}
        assert list(by) == [("train", "val"), ("train", "exam"), ("val", "exam")]
        leak = by["train", "val"]
        assert (leak.records_hit, leak.rows, leak.rows_hit, leak.rows_covered) == (2, 12, 2, 1)
        assert leak.prompts_shared == 1
        assert {(each.where, each.other) for each in leak.shared} == {
            ("rows in memory, row 4", f"{held}, row 11"),
            ("rows in memory, row 5", f"{held}, row 12"),
        }
        assert leak.shared[0].text in train[3]["prompt"] + train[3]["chosen"] + train[3]["rejected"]
        exam_leak = by["train", "exam"]
        assert (exam_leak.rows, exam_leak.rows_hit, exam_leak.prompts_shared) == (2, 1, 1)
        assert (by["val", "exam"].rows_hit, by["val", "exam"].records_hit) == (0, 0)

    def test_rows_of_several_files_are_named_by_their_own(self, tmp_path: Path) -> None:
        rows, names = pairs(6), ["a.jsonl", "b.jsonl"]
        rows[0]["chosen"], rows[0]["rejected"] = "long " * 200, "s"  # the longest and the shortest
        for name, part in zip(names, (rows[:3], rows[3:]), strict=True):
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part))
        source = FileSource([str(tmp_path / name) for name in names])
        exam = RowsSource([{"q": rows[5]["prompt"]}])
        splits = {"train": RowsSource([rows[4]]), "val": source}
        found = inspect(splits, against={"exam": exam}, similarity=None, samples=0)
        by = {(leak.split, leak.other): leak for leak in found.leaks}
        assert by["val", "exam"].shared[0].where == f"{tmp_path / 'b.jsonl'}, row 3"
        assert by["train", "val"].shared[0].other == f"{tmp_path / 'b.jsonl'}, row 2"

    def test_short_runs_do_not_count_and_system_turns_neither(self) -> None:
        train = [
            {"messages": _chat("be kind " * 10, "what is it " + "x" * n, "a" * n)} for n in (2, 3)
        ]
        test = [{"messages": _chat("be kind " * 10, "what is it then", "z")}]
        found = inspect({"train": RowsSource(train), "test": RowsSource(test)}, similarity=None)
        assert found.leaks[0].rows_hit == 0
        found = inspect(
            {"train": RowsSource(train), "test": RowsSource(test)}, similarity=None, run=3
        )
        assert found.leaks[0].rows_hit == 1

    def test_text_without_spaces(self) -> None:
        prompt = "天空是什么颜色的请用一句话回答我"
        train = [{"prompt": prompt, "chosen": "蓝色。", "rejected": "绿色。"}]
        found = inspect(
            RowsSource(train), against={"x": RowsSource([{"q": f"请问{prompt}"}])}, similarity=None
        )
        assert found.leaks[0].rows_hit == 1


def _chat(*contents: str) -> list[dict[str, str]]:
    roles = ("system", "user", "assistant")
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]


class TestSigns:
    def test_special_tokens_and_odd_characters_in_text(self) -> None:
        rows = pairs(4)
        rows[0]["chosen"] += "<|im_end|><|im_end|>"
        rows[1]["prompt"] += " [INST]"
        rows[2]["rejected"] += "\ufffd caf&amp;eacute; schÃ¶n"
        texts = facts(rows).texts
        assert dict(texts.special) == {"<|im_end|>": 1, "[INST]": 1}
        assert sorted(texts.odd.values()) == [1, 1, 1]
        assert "<|im_end|> 1" in said(inspect(RowsSource(rows), similarity=None))

    def test_own_special_tokens(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<<own>>"]})
        tokenizer.add_tokens(["    "])  # for spaces alone, as in GPT-NeoX's vocabulary
        rows = pairs(2)
        rows[0]["chosen"] += "<<own>>    "
        assert facts(rows).texts.special == {}
        assert facts(rows, tokenizer=tokenizer).texts.special == {"<<own>>": 1}

    def test_start_twice_and_ends(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = [{"prompt": "a b", "chosen": "<bos>c", "rejected": "d"}, *pairs(3)]
        tokens = facts(rows, tokenizer=tokenizer).tokens
        assert tokens is not None
        assert tokens.start_twice == 1
        assert tokens.ends == {"<eos>": 8}
        assert (tokens.no_end, tokens.end_of_turn, tokens.cut_prompts) == (0, "<eos>", 0)

    def test_a_template_without_an_end(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.chat_template = (
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}"
        )
        rows = [{"messages": _chat("s", f"question {n}", "answer")} for n in range(3)]
        found = inspect(RowsSource(rows), tokenizer=tokenizer, similarity=None)
        assert "ends an answer with no special token" in said(found)
        assert found.splits[0].texts.with_system == 3

    def test_answers_that_stop_within_a_sentence(self) -> None:
        rows = [{**row, "rejected": row["rejected"][:-5]} for row in pairs(40)]
        assert facts(rows).texts.unfinished == {"chosen": (40, 0), "rejected": (40, 40)}


class TestLabels:
    def test_votes_of_raters(self) -> None:
        votes = [[-3, -2, -2], [2, 1, -1], [-1, 1, 1], [3, 3]]
        rows = [
            {
                "prompt": f"q{n}",
                "response_1": "a",
                "response_2": "b",
                "preference_strength": strength,
            }
            | {"all_preferences_unprocessed": [{"strength": vote} for vote in each]}
            for n, (strength, each) in enumerate(zip([-2, 1, -1, 3], votes, strict=True))
        ]
        agreement = facts(rows).labels.agreement
        assert agreement is not None
        assert (agreement.rated, agreement.votes, agreement.unanimous, agreement.overruled) == (
            4,
            11,
            2,
            1,
        )
        assert agreement.share == pytest.approx((6 + 2 + 2 + 2) / 20)
        krippendorff = pytest.importorskip("krippendorff")
        sides = [
            [vote * (1 if strength > 0 else -1) for vote in each]
            for strength, each in zip([-2, 1, -1, 3], votes, strict=True)
        ]
        table = [[each[i] if i < len(each) else float("nan") for each in sides] for i in range(3)]
        expected = krippendorff.alpha(table, level_of_measurement="interval")
        assert agreement.alpha == pytest.approx(expected)

    def test_values_and_what_lacks_them(self) -> None:
        rows = pairs(4)
        rows[0]["p_chosen"], rows[1]["p_chosen"] = 0.75, 0.5
        labels = facts(rows).labels
        assert labels.values == {"p_chosen": {0.5: 1, 0.75: 1}}
        assert (dict(labels.unlabelled), labels.undecided) == ({"p_chosen": 2}, 1)


KINDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "pairs": lambda n: {"prompt": f"q{n}", "chosen": "a", "rejected": "b"},
    "rankings": lambda n: {"prompt": f"q{n}", "completions": ["a", "b"], "scores": [n, 2]},
    "unpaired": lambda n: {"prompt": f"q{n}", "completion": "a", "label": n % 2},
    "demonstrations": lambda n: {"prompt": f"q{n}", "completion": "a"},
    "text": lambda n: {"text": f"q{n}"},
    "prompts": lambda n: {"prompt": f"q{n}", "answer": n},
    "steps": lambda n: {"prompt": f"q{n}", "completions": ["a", "b"], "labels": [True, False]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [KINDS[kind](n) for n in range(5)]
    for options in ({}, {"tokenizer": tokenizer}):
        found = facts(rows, similarity=0.9, **options)
        assert (found.kind, found.records) == (kind, 5)
        assert len(found.samples) == 5
        assert (found.lengths.pair is None) == (kind not in ("pairs", "rankings"))
        json.dumps(inspect(RowsSource(rows), **options).to_json())


def test_splits_of_a_directory(tmp_path: Path) -> None:
    splits = {
        name: Dataset.from_list(tiny_preferences(4, seed))
        for name, seed in (("test", 0), ("train", 0))
    }
    DatasetDict(splits).save_to_disk(tmp_path / "all")
    found = inspect(tmp_path / "all", similarity=None)
    assert [split.name for split in found.splits] == ["train", "test"]
    assert found.leaks[0].prompts_shared == 4


def test_the_same_is_found_again() -> None:
    rows = pairs(30)
    once, twice = (inspect(RowsSource(rows), samples=4) for _ in range(2))
    assert once == twice
    assert len(once.splits[0].samples) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"similarity": 0}, r"inspect\(similarity=0\)"),
        ({"similarity": 1.5}, "above 0 and at most 1"),
        ({"run": 1}, r"inspect\(run=1\)"),
        ({"samples": -1}, r"inspect\(samples=-1\)"),
        ({"kind": "steps"}, "are no steps"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        inspect(RowsSource(pairs(2)), **options)
    with pytest.raises(ConfigurationError, match="No data"):
        inspect({})
