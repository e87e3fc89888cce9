"""benchmarks/comparison: pairing, ratios, parity, what is kept of an interrupted comparison, and the report."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from benchmarks import compare as compare_script
from benchmarks.comparison import machine as machine_module, parity
from benchmarks.comparison.inputs import REVIEWS, Inputs
from benchmarks.comparison.ledger import Measured
from benchmarks.comparison.machine import cpu_kind, cpu_model, machine
from benchmarks.comparison.regret import regrets
from benchmarks.comparison.report import tables
from benchmarks.comparison.results import compare, ratio, utilisation
from benchmarks.comparison.runner import Runner
from benchmarks.comparison.workloads import GROUPS, WORKLOADS, sides_of
from benchmarks.human_sentiment.corpus import Sentence
from benchmarks.human_sentiment.prepare import Recipe, build_rows, write_jsonl
from benchmarks.markdown import insert
from benchmarks.peers import turns
from benchmarks.peers.processes import Run, measure
from benchmarks.workloads.rows import write_rows
from lit_rlhf.testing.models import make_tiny_model
from lit_rlhf.testing.tokenizers import make_tokenizer


def run(seconds: float, *, samples: int = 8, gigabytes: float = 1.0, **more: object) -> Measured:
    return Measured(
        {"seconds": [seconds] * 2, "samples": samples, **more}, 3 * seconds, round(gigabytes * 1e9)
    )


def lit_run(
    seconds: float, curve: Sequence[float] = (0.7, 0.6), dtype: str = "bfloat16"
) -> Measured:
    """Two steps of 1e12 FLOPs each, on a machine that does 1e12 a second."""
    flops, phases = [{"update": 1e12}] * 2, [{"update": seconds, "other": 9.0}] * 2
    peaks = {"bfloat16": 1e12, "float32": 2e11}
    return run(
        seconds,
        gigabytes=2.0,
        curve=list(curve),
        flops=flops,
        phases=phases,
        peaks=peaks,
        dtype=dtype,
    )


def test_the_ratio_is_of_medians_and_its_range_of_pairs() -> None:
    found = ratio([10.0, 20.0, 60.0], [5.0, 20.0, 10.0])
    assert found == {"median": 20.0 / 10.0, "min": 1.0, "max": 6.0}
    with pytest.raises(ValueError, match="2 runs of ours and 1 of the peer's"):
        ratio([1.0, 2.0], [1.0])


def test_sides_take_turns_and_a_peer_of_two_comparisons_runs_once() -> None:
    workloads = [WORKLOADS[name] for name in ("ppo", "ppo_defaults", "dpo")]
    sides = sides_of(workloads)
    assert [side.key for side in sides["ppo"]] == ["trl", "lit", "lit-defaults"]
    assert [side.key for side in sides["dpo"]] == ["trl", "lit"]


@pytest.mark.parametrize(
    ("ours", "theirs", "ok"),
    [
        ([0.693, 0.6], [0.693, 0.61], True),
        ([0.693, 0.6], [0.693, 0.64], False),
        ([4.0, 3.9], [4.0, 4.0], True),  # relative where losses exceed 1
        ([0.693], [0.693, 0.6], False),
        ([0.693, math.nan], [0.693, 0.6], False),
        ([], [], False),
    ],
)
def test_loss_curves_agree_step_by_step(ours: list[float], theirs: list[float], ok: bool) -> None:
    assert parity.curves(ours, theirs, 0.03)["ok"] is ok


@pytest.mark.parametrize(
    ("ours", "ok"),
    [([0.0, 0.0, 1.0, 2.0], True), ([9.0, 9.0, 0.9, 1.1], True), ([9.0, 9.0, 0.9, 1.05], False)],
)
def test_rewards_reach_the_peers_late_mean_less_its_deviation(ours: list[float], ok: bool) -> None:
    found = parity.rewards(ours, [0.0, 0.0, 1.0, 2.0], least_steps=2)  # late: 1.5 ± 0.5
    assert (found["peer_mean"], found["peer_deviation"]) == (1.5, 0.5)
    assert found["ok"] is ok


@pytest.mark.parametrize(
    ("ours", "theirs", "ok"),
    [(5, 5, True), (4, 4, None), (1, 1, None), (4, 3, False), (6, 5, False), (0, 0, False)],
)
def test_rewards_of_too_few_steps_are_not_judged(ours: int, theirs: int, ok: bool | None) -> None:
    assert parity.rewards([1.0] * ours, [0.0] * theirs, least_steps=3)["ok"] is ok


def test_generations_agree_by_regret_and_length() -> None:
    short, long = [8.0, 12.0] * 8, [12.0, 16.0] * 8  # means 10, 14, the standard error of each 0.5
    assert parity.generations(0.01, 0.015, short, short, 0.02, 3.0)["ok"]
    assert not parity.generations(0.03, 0.0, short, short, 0.02, 3.0)["ok"]
    assert not parity.generations(0.0, 0.03, short, short, 0.02, 3.0)["ok"]
    assert not parity.generations(0.0, math.nan, short, short, 0.02, 3.0)["ok"]
    found = parity.generations(0.0, 0.0, long, short, 0.02, 3.0)
    assert not found["ok"]
    assert found["length_error"] == pytest.approx(math.sqrt(0.5))
    assert parity.generations(0.0, 0.0, long, short, 0.02, 6.0)["ok"]


def test_greedy_tokens_have_no_regret_and_others_what_they_lack() -> None:
    model = make_tiny_model(make_tokenizer())
    prompts = [[5, 6, 7], [8, 9]]
    logits = torch.stack(
        [model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
    ).detach()
    best, least = logits.argmax(-1), logits.argmin(-1)
    assert regrets(model, prompts, best[:, None].tolist()).tolist() == [0.0, 0.0]
    gap = logits.amax(-1) - logits.amin(-1)
    torch.testing.assert_close(regrets(model, prompts, least[:, None].tolist()), gap)
    longer = regrets(model, prompts, [[int(least[0])], [int(best[1]), 7]])  # of different lengths
    assert len(longer) == 3
    torch.testing.assert_close(longer[:2], torch.stack([gap[0], torch.tensor(0.0)]))


def test_weights_are_in_what_the_cpu_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(machine_module, "multiplies_bfloat16", lambda native=native: native)
        assert machine_module.fast_dtype() == dtype
        inputs = Inputs(Path(), Path(), (2,), dtype)
        assert inputs.settings("sft", {**GROUPS["sft"].full}, 1).dtype == dtype
        assert (
            inputs.settings("sft", {**GROUPS["sft"].full, "dtype": "float32"}, 1).dtype == "float32"
        )


def test_what_is_missing_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_script, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"gguf and vaderSentiment: pip install -e '\.\[bench\]'"):
        compare_script.main([])


def test_goals_are_those_of_the_dtype() -> None:
    dpo, sft = WORKLOADS["dpo"], WORKLOADS["sft"]
    assert dpo.goals_in("bfloat16") == dpo.goals
    assert dpo.goals_in("float32") == {**dpo.goals, "throughput_ratio": 3.0}
    assert "throughput_ratio" not in sft.goals_in("float32")


def test_utilisation_counts_the_phase_alone() -> None:
    runs = [lit_run(2.0), lit_run(4.0)]
    for run in runs:
        run.result.pop("dtype", None)  # as runs that generate have none
    found = utilisation(runs, "bfloat16")
    assert set(found) == {"update"}
    assert found["update"]["share_of_peak"] == {"median": 0.375, "min": 0.25, "max": 0.5}
    assert found["update"]["gflop_per_step"] == 1000.0


def test_an_entry_has_ratios_spread_parity_and_utilisation_and_is_json() -> None:
    ours = [lit_run(1.0), lit_run(2.0), lit_run(1.0)]
    theirs = [run(4.0, gigabytes=4.0, curve=[0.7, 0.6], dtype="bfloat16") for _ in range(3)]
    workload = WORKLOADS["dpo"]
    entry = compare(workload, {("dpo", "lit"): ours, ("dpo", "trl"): theirs}, {}, "bfloat16")
    assert entry["throughput_ratio"] == 4.0
    assert entry["throughput_ratio_range"] == [2.0, 4.0]
    assert entry["memory_ratio"] == 0.5
    assert entry["parity"]["ok"] is True
    assert entry["ours"]["samples_per_second"] == {"median": 8.0, "min": 4.0, "max": 8.0}
    assert entry["peer"]["tokens_per_second"] is None
    assert "tokens_ratio" not in entry
    assert json.loads(json.dumps(entry)) == entry


def test_rewards_are_judged_by_the_longer_runs_where_there_are_some() -> None:
    runs = {("ppo", side): [lit_run(1.0, curve=[0.0, 0.0])] for side in ("lit", "trl")}
    assert compare(WORKLOADS["ppo"], runs, {}, "bfloat16")["parity"]["ok"] is None
    longer = {
        ("ppo", side): lit_run(1.0, curve=[0.0, 0.0, 0.0, *late])
        for side, late in (("lit", [5.0] * 3), ("trl", [4.0] * 3))
    }
    entry = compare(WORKLOADS["ppo"], runs, longer, "bfloat16")
    assert (entry["parity"]["our_mean"], entry["parity"]["peer_mean"]) == (5.0, 4.0)


def test_curves_are_judged_in_float32_and_told_in_bfloat16() -> None:
    timed = {
        ("dpo", side): [lit_run(1.0, curve=[0.7, late])]
        for side, late in (("lit", 0.69), ("trl", 0.65))
    }
    assert compare(WORKLOADS["dpo"], timed, {}, "bfloat16")["parity"]["ok"] is False
    for late, ok in ((0.650005, True), (0.65002, False)):
        exact = {
            ("dpo", "lit"): lit_run(1.0, [0.7, late], "float32"),
            ("dpo", "trl"): lit_run(1.0, [0.7, 0.65], "float32"),
        }
        found = compare(WORKLOADS["dpo"], timed, exact, "bfloat16")["parity"]
        assert (found["ok"], found["dtype"], found["timed"]["dtype"]) == (ok, "float32", "bfloat16")
        assert found["timed"]["worst"] == pytest.approx(0.04)
    wrong = {
        ("dpo", side): [lit_run(1.0, curve=[0.7, late])]
        for side, late in (("lit", 0.76), ("trl", 0.65))
    }
    same = {("dpo", side): lit_run(1.0, [0.7, 0.6], "float32") for side in ("lit", "trl")}
    assert compare(WORKLOADS["dpo"], timed, same, "bfloat16")["parity"]["ok"] is True
    # The kernels that were timed are others.
    assert compare(WORKLOADS["dpo"], wrong, same, "bfloat16")["parity"]["ok"] is False
    mixed = timed | {("dpo", "trl"): [lit_run(1.0, dtype="float32")]}
    with pytest.raises(ValueError, match="bfloat16 and of float32"):
        compare(WORKLOADS["dpo"], mixed, {}, "bfloat16")


class Replaced(Runner):
    """With a tiny command in place of a workload's script, in a real process."""

    def instead(self, log: Path) -> list[str | Path]:
        """Python's arguments behind `-c`."""
        return ["""print('RESULT {"seconds": [0.5], "samples": 4, "curve": [1.0]}')"""]

    def step(
        self,
        command: Sequence[str | Path],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> Run:
        return super().step([sys.executable, "-c", *self.instead(log)], log, environment)


def test_longer_runs_are_made_in_full_comparisons_alone(tmp_path: Path) -> None:
    said: list[str] = []

    workloads = [WORKLOADS["rloo"], WORKLOADS["generate"]]
    for quick, names in ((True, []), (False, ["rloo-trl-judged", "rloo-lit-judged"])):
        found = Replaced(
            tmp_path, Inputs(tmp_path, tmp_path, (2,)), 1, quick=quick, say=said.append
        ).judged(workloads)
        assert [line.split(":")[0] for line in said] == names
        assert set(found) == ({("rloo", "trl"), ("rloo", "lit")} if names else set())


def test_the_report_has_a_row_for_each_workload_and_goes_between_its_marks(tmp_path: Path) -> None:
    runs = {
        ("dpo", "lit"): [lit_run(1.0)],
        ("dpo", "trl"): [run(4.0, gigabytes=4.0, curve=[0.7, 9.0], dtype="bfloat16")],
    }
    about = machine(2, {"float32": 2e11, "bfloat16": 8e11}, "bfloat16")
    seconds = {"runs": 60.0, "environments": 1.0}
    text = tables(
        {
            "quick": True,
            "pairs": 1,
            "machine": about,
            "versions": {"lit_rlhf": {"torch": "2.13.0"}},
            "seconds": seconds,
            "workloads": {"dpo": compare(WORKLOADS["dpo"], runs, {}, "bfloat16")},
        }
    )
    rows = [line for line in text.splitlines() if line.startswith("| `dpo`")]
    assert len(rows) == 3
    assert "**4.00** (4.00 to 4.00) | 5 |" in rows[0]
    assert rows[2].endswith("| **no** |")
    document = tmp_path / "doc.md"
    document.write_text(
        "# A\n\n<!-- compare:begin -->\nold\n<!-- compare:end -->\n\nrest\n", encoding="utf-8"
    )
    for _ in range(2):
        insert(document, "compare", text)
    found = document.read_text(encoding="utf-8")
    assert found.count("| `dpo`") == 3
    assert all(len(line) <= 120 for line in found.splitlines() if not line.startswith("|"))
    assert "old" not in found
    assert found.startswith("# A\n\n<!-- compare:begin -->")
    assert found.endswith("<!-- compare:end -->\n\nrest\n")
    with pytest.raises(ValueError, match="scaling:begin"):
        insert(document, "scaling", text)
    assert document.read_text(encoding="utf-8") == found


def test_an_interrupted_comparison_goes_on_where_it_stopped(tmp_path: Path) -> None:
    workload, said, broken = WORKLOADS["rloo"], [], [False]

    class Tiny(Replaced):
        def instead(self, log: Path) -> list[str | Path]:
            if "lit-1" in log.name and broken[0]:
                raise KeyboardInterrupt
            return super().instead(log)

    runner = Tiny(tmp_path, Inputs(tmp_path, tmp_path, (2,)), 1, quick=True, say=said.append)
    broken[0] = True
    with pytest.raises(KeyboardInterrupt):
        runner.timed([workload], 2)
    done = ["rloo-lit-0", "rloo-trl-0", "rloo-trl-1"]
    assert sorted(line.split(":")[0] for line in said) == done
    said.clear()
    broken[0] = False
    runs = runner.timed([workload], 2)
    assert sorted(line.split(":")[0] for line in said if "kept" in line) == done
    assert len(said) == 4
    assert [run.samples_per_second for run in runs["rloo", "lit"]] == [8.0, 8.0]
    assert all(run.peak_bytes > 1e6 for side in runs.values() for run in side)
    kept = runner.one("rloo", workload.ours, GROUPS["rloo"].settings(quick=True) | {"lr": 9.0}, "0")
    assert "kept" not in said[-1], "another recipe is another run"
    assert kept.samples_per_second == 8.0
    runner.ledger.forget()
    assert not list(runner.ledger.folder.glob("*.json"))


STEPS = """
import sys
from pathlib import Path
from benchmarks.peers import turns
from benchmarks.peers.processes import report
from benchmarks.workloads.shared import Clock

turns.take()
clock, log = Clock(), Path(sys.argv[1])
Clock.now = lambda: len(log.read_text().split())  # steps of all
for step in range(int(sys.argv[3])):
    with log.open("a") as file:
        file.write(f"{sys.argv[2]}{step} ")
    if sys.argv[4:] == [str(step)]:
        raise SystemExit("broken")
    clock.tick()
report({"seconds": clock.seconds})
"""


def test_processes_take_turns_by_steps(tmp_path: Path) -> None:
    given = turns.begin(tmp_path / "turns", ["a", "b", "c"])
    log = tmp_path / "log"

    def go(name: str, steps: int, environment: Mapping[str, str]) -> Run:
        command = [sys.executable, "-c", STEPS, log, name, str(steps)]
        return measure(command, log=tmp_path / f"{name}.txt", environment=environment)

    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(go, "abc", (3, 2, 4), given))
    assert log.read_text().split() == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "c2", "c3"]
    own = [run.result["seconds"] for run in runs]
    assert own == [[1, 1], [1], [1, 1, 1]], "a step's time is its own"


def test_where_one_fails_the_others_end(tmp_path: Path) -> None:
    class Breaking(Replaced):
        def instead(self, log: Path) -> list[str | Path]:
            return [STEPS, tmp_path / "log", "s", "99999", *["1"] * ("trl" in log.name)]

    runner = Breaking(tmp_path, Inputs(tmp_path, tmp_path, (2,)), 1, quick=True)
    with pytest.raises(RuntimeError, match="broken"):
        runner.timed([WORKLOADS["rloo"]], 1)
    assert len((tmp_path / "log").read_text().split()) < 99999


def test_the_cpu_is_named_with_what_matters_to_bfloat16() -> None:
    text = "processor\t: 0\nmodel name\t: Some CPU\ncpu family\t: 25\nmodel\t\t: 17\n"
    text += "flags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\n"
    assert cpu_model(text) == "Some CPU, family 25, model 17, avx512_bf16"
    assert cpu_kind(text, "bfloat16") == "avx512_bf16"
    assert cpu_kind(text.replace("avx512_bf16", "avx512_bf16 amx_bf16"), "bfloat16") == "amx_bf16"
    assert cpu_kind(text, "float32") == "float32"
    assert cpu_kind("processor\t: 0\nFeatures\t: bf16\n", "bfloat16") == "bfloat16"


def test_every_workload_has_settings_that_a_script_takes(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path, tmp_path, (0, 2))
    for workload in WORKLOADS.values():
        group = GROUPS[workload.group]
        for told in (
            group.settings(quick=True),
            group.settings(quick=False),
            group.full | (group.judged or {}),
        ):
            settings = inputs.settings(workload.group, told | workload.ours.options, 2)
            assert settings.steps >= 2, "the first step isn't timed"
            assert bool(settings.stop_tokens) is (workload.group == "generate_varied")
    assert inputs.settings("ppo", GROUPS["ppo"].full, 2).reward_model.endswith("reward_model")
    defaults = GROUPS["ppo"].full | WORKLOADS["ppo_defaults"].ours.options
    assert inputs.settings("ppo", defaults, 2).reward_model.endswith("reward_adapter")


def test_texts_are_of_a_data_set_that_prepare_writes(tmp_path: Path) -> None:
    sentences = [Sentence(str(i), f"{i} " + "a " * (i % 40) + "b", (1, 2, 3)) for i in range(400)]
    write_jsonl(tmp_path / "reviews.jsonl", build_rows(sentences, Recipe())[REVIEWS])
    make_tokenizer().save_pretrained(tmp_path / "model")
    write_rows(tmp_path / "reviews.jsonl", tmp_path / "model", tmp_path, count=2)
    for name, columns in (
        ("pairs", {"prompt", "chosen", "rejected", "completion"}),
        ("short", {"prompt"}),
    ):
        rows = [
            json.loads(line)
            for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        assert len(rows) == 2
        assert all(set(row) == columns for row in rows)
