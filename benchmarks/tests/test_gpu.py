"""benchmarks/gpu on CPU: its parts run and find the CPU equal to itself; what it compares and writes."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import ROOT, SHARES, _finish, main
from benchmarks.gpu.part import PARTS
from benchmarks.gpu.report import baseline_of, page, read_run, worse_than, write_run
from benchmarks.gpu.result import Result
from benchmarks.gpu.strip import strip


def run_of(out: Path, tokens: float, gib: float, device: str = "cuda") -> Path:
    out.mkdir(exist_ok=True)
    machine = Result(facts={"card": "NVIDIA H100 80GB HBM3"})
    ppo = Result()
    ppo.measure("PPO: update", tokens_per_s=tokens, peak_gib=gib, mfu=0.2)
    ppo.check("gap", 0.5, 0.1)
    write_run(out, {"machine": machine, "ppo": ppo}, device=device, size="0.5b", args=["--x"])
    return out


@pytest.mark.timeout(180)
def test_a_rehearsal_on_cpu(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["--device", "cpu", "--size", "tiny", "--only", "machine", "resume", "dpo"]
    assert main([*command, "--out", str(out), "--budget", "170"]) == 0
    parts = read_run(out)["parts"]
    assert list(parts) == ["machine", "resume", "dpo"]
    assert parts["resume"].checks["tensors that differ"] == {
        "value": 0.0,
        "limit": 0.0,
        "holds": True,
    }
    assert parts["machine"].measures["bf16 product"]["tflops"] > 0
    shared = parts["dpo"].measures["DPO, LoRA r16, shared"]
    assert shared["tokens_per_s"] > 0 and shared["mfu"] > 0
    assert "Not run yet" in page(read_run(out))  # a rehearsal is no run


def test_each_part_has_a_share_of_the_time() -> None:
    assert set(SHARES) == set(PARTS)


def test_a_part_that_is_ended_leaves_what_it_had_measured(tmp_path: Path) -> None:
    work = (
        "import sys, time; from pathlib import Path; from benchmarks.gpu.result import Result\n"
        "result = Result(); result.keep_in(Path(sys.argv[1])); result.measure('one', seconds=1.0)\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    (tmp_path / "ppo.log").write_text("the last line")
    command = [sys.executable, "-c", work, str(tmp_path / "ppo.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        result = _finish("ppo", process, tmp_path, 8.0)
    assert result.measures == {"one": {"seconds": 1.0}}
    assert "was ended after 8 s" in result.failures["ppo"]
    assert "the last line" in result.failures["ppo"]


def test_a_part_that_crashes_loses_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    only = ["--device", "cpu", "--only", "machine", "dpo"]
    assert main([*only, "--out", str(tmp_path)]) == 1
    parts = read_run(tmp_path)["parts"]
    assert set(parts) == {"machine", "dpo"}
    assert "ended with status 1" in parts["dpo"].failures["dpo"]


def test_what_became_worse_is_named(tmp_path: Path) -> None:
    before = read_run(run_of(tmp_path / "a", 1000.0, 10.0))
    assert worse_than(before, read_run(run_of(tmp_path / "b", 960.0, 10.4))) == []
    assert worse_than(before, read_run(run_of(tmp_path / "c", 940.0, 10.6))) == [
        "ppo, PPO: update: tokens_per_s 940, was 1000",
        "ppo, PPO: update: peak_gib 10.6, was 10",
    ]
    assert baseline_of(before, tmp_path).name == "nvidia-h100-80gb-hbm3-0.5b.json"


def test_the_page_of_a_run(tmp_path: Path) -> None:
    text = page(read_run(run_of(tmp_path, 1000.0, 10.0)))
    assert "card NVIDIA H100 80GB HBM3" in text
    assert "| ppo | gap | 0.5 | 0.1 | **fails** |" in text
    assert "| PPO: update | 1,000 | 20.0 % | 10 |" in text


def test_the_page_in_docs_is_that_of_a_baseline() -> None:
    text = (ROOT / "docs/GPU.md").read_text(encoding="utf-8")
    baselines = (ROOT / "benchmarks/gpu/baselines").glob("*.json")
    assert text in [page(read_run(path)) for path in baselines]


def test_a_stripped_wheel_installs(tmp_path: Path) -> None:
    wheel = tmp_path / "some-1.0-py3-none-any.whl"
    info = "some-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("some/__init__.py", "")
        for kind in ("cpu", "cuda118", "cuda130"):
            file.writestr(f"some/libbitsandbytes_{kind}.so", kind)
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: some\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    with pytest.raises(SystemExit, match="lacks some of"):
        strip(wheel, ["cpu", "cuda999"])
    strip(wheel, ["cpu", "cuda130"])
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    found = {path.name for path in (target / "some").glob("*.so")}
    assert found == {"libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so"}


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    result = Result()
    with result.attempt("x"):
        raise ValueError("a\nb")
    result.check("nan", float("nan"), 1.0)
    result.write(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["failures"] == {"x": "ValueError: a b"}
    assert not Result.read(tmp_path / "r.json").sound
    assert not Result.read(tmp_path / "r.json").checks["nan"]["holds"]
