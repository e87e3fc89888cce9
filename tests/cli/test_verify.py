"""`lit-rlhf verify` from the command line."""

import json
import sys
from pathlib import Path

import pytest

from lit_rlhf.cli import main

OWN = '''
from lit_rlhf.objectives import DPO, LeaveOneOut
from lit_rlhf.modules import GroupPolicyModule


class MyMethod(GroupPolicyModule):
    """RLOO by another name."""

    def __init__(self, *args, scale: float = 1.0, **kwargs):
        super().__init__(*args, advantage=LeaveOneOut(), **kwargs)
        self.scale = scale
'''


def test_json_has_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", "--json", "--methods", '["DPO"]'])
    (row,) = json.loads(capsys.readouterr().out)
    assert set(row) == {"method", "target", "gradient_norm", "distance", "ok", "seconds"}
    assert row["ok"]


def test_table_and_unknown_methods(capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", "--methods", "DPO"])
    assert "1 of 1 at their targets" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["verify", "--methods", '["DPOO"]'])
    assert "no method 'DPOO'" in capsys.readouterr().err


def test_a_method_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found where the command is called, as by the script on the PATH, which looks elsewhere by itself."""
    (tmp_path / "own_method.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != ""])
    main(
        [
            "verify",
            "--json",
            "--model.class_path",
            "own_method.MyMethod",
            "--model.init_args.scale",
            "2.0",
        ]
    )
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["MyMethod", "MyMethod (off-policy)"]
    assert all(row["ok"] for row in rows)


def test_a_class_that_is_not_there_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["verify", "--model.class_path", "nowhere.MyMethod"])
    assert "there is no module 'nowhere' in the current directory" in capsys.readouterr().err
