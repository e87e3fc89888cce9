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


SLIPS = """
import torch

from lit_rlhf.modules import PolicyModule


class Forgets(PolicyModule):
    def estimate(self, rollout):
        rollout.with_advantages(rollout.response_mask * 1.0)


class PerSample(PolicyModule):
    def estimate(self, rollout):
        return rollout.with_advantages(torch.ones(rollout.response_mask.shape[0]))


class Nothing(PolicyModule):
    pass


class Downhill(PolicyModule):
    default_samples = 2

    def estimate(self, rollout):
        returns = self.shape_rewards(rollout).sum(-1).view(-1, rollout.num_samples)
        worse = returns.mean(-1, keepdim=True) - returns
        return rollout.with_advantages(worse.view(-1, 1) * rollout.response_mask)
"""


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("Forgets", 2, "Forgets.estimate returned NoneType: it must return a rollout"),
        ("PerSample", 2, "). spread_over_tokens(values, rollout.response_mask) makes one"),
        ("Nothing", 2, "Nothing must override estimate(rollout)"),
        ("Downhill", 1, "Downhill: at the target its expected gradient is 0, but training ends"),
    ],
)
def test_what_is_wrong_with_ones_own(
    name: str,
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "slips.py").write_text(SLIPS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["verify", "--model.class_path", f"slips.{name}"])
    assert ended.value.code == status
    said = capsys.readouterr()
    assert message in said.out + said.err
