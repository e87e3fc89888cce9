"""What a shell completes is what there is; asked of the shells themselves."""

import re
import shutil
import subprocess

import pytest

from lit_rlhf.cli import main
from lit_rlhf.cli.commands import COMMANDS, RECIPES, TRAINING
from lit_rlhf.cli.completion import options_of, script
from lit_rlhf.errors import ConfigurationError

PARSED = [name for name, each in COMMANDS.items() if each.module not in (RECIPES, TRAINING)]


def completed(*words: str) -> list[str]:
    """What bash offers for the last of these words."""
    line = " ".join(f"'{word}'" for word in words)
    asked = f'COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _lit_rlhf; echo "${{COMPREPLY[@]}}"'
    told = subprocess.run(
        ["bash", "-c", f"{script('bash')}\n{asked}"], capture_output=True, text=True, check=True
    )
    return told.stdout.split()


def test_bash() -> None:
    assert completed("lit-rlhf", "") == list(COMMANDS)
    assert completed("lit-rlhf", "ge") == ["generate"]
    assert completed("lit-rlhf", "fit", "-c", "policy/ppo") == [
        "policy/ppo_full",
        "policy/ppo_lora",
        "policy/ppo_nf4_lora",
    ]
    assert "ppo" in completed("lit-rlhf", "init", "")
    assert completed("lit-rlhf", "generate", "--num_s") == ["--num_samples"]
    assert completed("lit-rlhf", "dpo", "--model", "m", "--see") == ["--seeds", "--seed_everything"]
    assert completed("lit-rlhf", "data", "co") == ["convert"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh isn't installed")
def test_zsh_reads_it() -> None:
    told = subprocess.run(
        ["zsh", "-f", "-c", f"autoload -Uz compinit; compinit -u -D; {script('zsh')}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stderr == ""


@pytest.mark.parametrize("command", [name for name in PARSED if name not in ("help", "completion")])
def test_every_option_is_one_of_the_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    helps = []
    for words in [["show"], ["inspect"], ["convert"]] if command == "data" else [[]]:
        with pytest.raises(SystemExit):
            main([command, *words, "--help"])
        helps.append(capsys.readouterr().out)
    found = set(re.findall(r"(?m)^  (?:-\w(?: \w+)?, )?(--\w+)(?=[ =\n\[])", "".join(helps)))
    offered = {flag for flag in options_of(command) if flag.startswith("--") and "." not in flag}
    if command == "estimate":  # which says that it takes those of fit
        assert "[options of lit-rlhf fit]" in helps[0] and offered >= {"--run_dir", "--model"}
        offered -= set(options_of("fit"))
    assert offered
    assert found - {"--help", "--config", "--print_config"} == offered - {"--help", "--config"}


def test_another_shell() -> None:
    with pytest.raises(ConfigurationError, match="completion bash"):
        script("tcsh")


def test_how_it_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion"])
    main(["completion", "zsh"])
    said = capsys.readouterr().out
    assert "usage" in said
    assert "bashcompinit" in said
