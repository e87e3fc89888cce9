"""The report of rounds: hostile text in every field, whole numbers of rounds, points that can be told apart."""

import json
from pathlib import Path

from lit_rlhf.cli.output import write_rows
from lit_rlhf.report.rounds_page import report_rounds
from tests.unit.report.test_page import HOSTILE, Reader


def write_rounds(root: Path, text: str) -> Path:
    """Two rounds with this text wherever one stands; the page."""
    step = {"name": text, "command": text, "began": text, "seconds": 1.5}
    measures = {"score": 0.5, "score_stderr": 0.1, "kl": 0.0, "rows": 1024, "finished": 0.99}
    rounds = {
        key: {"steps": [step], "measures": {**measures, "kl": float(number), "score": number / 2}}
        for number, key in enumerate(("initial", "0", "1"))
    }
    record = {"method": text, "policy": text, "state": "stopped", "reason": text, "rounds": rounds}
    root.mkdir()
    (root / "rounds.json").write_text(json.dumps(record))
    for place in ("initial", "round-00", "round-01"):
        (root / place).mkdir()
        row = {"prompt": text, "response": f"{text} {place}", "score": None}
        write_rows([row], root / place / "evaluation.jsonl")
    return report_rounds(root, root / "report.html")


def test_hostile_text_is_text(tmp_path: Path) -> None:
    hostile = f"{HOSTILE} a\u2028b\x85c"  # breaks of lines for str.splitlines, not for JSON
    page = Reader(write_rounds(tmp_path / "rounds", hostile).read_text())
    plain = Reader(write_rounds(tmp_path / "plain", "text").read_text())
    assert page.tags == plain.tags
    assert sum(HOSTILE in text for text in page.texts) > 10
    assert f"{hostile} round-01" in page.texts
    assert not page.addresses or all(link.startswith("#") for link in page.addresses)


def test_rounds_are_whole_and_points_are_named(tmp_path: Path) -> None:
    page = Reader(write_rounds(tmp_path / "rounds", "text").read_text())
    assert "0.5\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.1" in [text.strip() for text in page.texts]
    *curves, cost = page.specs
    for spec in curves:
        assert spec["encoding"]["x"]["axis"] == {"tickMinStep": 1}
    (rows,) = [spec for spec in curves if spec["layer"][0]["encoding"]["y"]["title"] == "rows"]
    assert rows["layer"][0]["encoding"]["y"]["axis"] == {"format": ",.4~g"}
    named = {row["s"]: (row["x"], row["y"]) for row in cost["data"]["values"]}
    assert named == {"first policy": (0, 0), "round 0": (1, 0.5), "round 1": (2, 1)}
