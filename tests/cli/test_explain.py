"""`lit-rlhf help metrics NAME` and `help option NAME` answer from the texts of the site."""

import contextlib

import pytest

from lit_rlhf.cli import main
from lit_rlhf.cli.commands import COMMANDS
from lit_rlhf.cli.explain import explain_metric, explain_option, metrics, options
from lit_rlhf.errors import ConfigurationError
from tests.docs.pages import PAGES, logged_names
from tests.walks import walk


def test_every_metric_of_the_site_is_known() -> None:
    pages = [page for page in PAGES if page.startswith("modules/")]
    listed = set().union(*(logged_names(page) for page in pages))
    known = {name for row in metrics() for name in row.names}
    assert {name for name in listed if name.startswith(("train/", "val/"))} <= known
    assert {row.page for row in metrics()} >= {"index", "ppo", "group", "reward"}


def test_a_metric(capsys: pytest.CaptureFixture[str]) -> None:
    main(["help", "metrics", "train/lr"])
    said = capsys.readouterr().out
    assert "(docs/modules/index.md)" in said
    assert "warm-up" in said
    assert "[KL explodes](" not in explain_metric("train/objective/kl")
    assert "KL explodes" in explain_metric("train/objective/kl")
    assert "<part>" in explain_metric("train/rewards/length/mean")
    assert explain_metric("clipfrac").count("healthy:") > 1


@pytest.mark.parametrize("name", ["KTO.beta", "model.loss.KTO.beta"])
def test_an_option_of_a_class(name: str) -> None:
    assert explain_option(name).splitlines()[0] == "KTO.beta, default 0.1"
    assert len(explain_option(name).splitlines()) == 2


def test_an_option_wherever_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    main(["help", "option", "data.val_fraction"])
    assert "BranchedDataModule.val_fraction, default 0.0" in capsys.readouterr().out
    assert "DPO.beta" in explain_option("model.init_args.loss.init_args.beta")
    assert "Trainer.max_epochs" in explain_option("trainer.max_epochs")
    assert "AdamW.lr, default 0.001" in explain_option("model.optimizer.lr")
    owners = {row.owner for row in options()}
    assert {"ModelSpec", "LoraSpec", "Sampling", "PPOPolicyModule", "FileSource"} <= owners


def test_what_is_unknown() -> None:
    with pytest.raises(ConfigurationError, match=r"No option 'clp' is known\. Did you mean clip"):
        explain_option("clp")
    with pytest.raises(ConfigurationError, match=r"No metric 'train/kl_coeff' .*train/kl_coef"):
        explain_metric("train/kl_coeff")


@pytest.mark.parametrize("command", walk(COMMANDS, "dpo", "data", "report"))
def test_help_of_a_command_is_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for words in (["help", command], [command, "--help"]):
        with contextlib.suppress(SystemExit):
            main(words)
        said.append(capsys.readouterr())
    assert said[0] == said[1]
    assert f"lit-rlhf {command}" in said[0].out or command == "help"


@pytest.mark.parametrize("words", [["metrics"], ["what", "beta"], ["option", "a", "b"]])
def test_how_it_is_asked(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["help", *words])
    assert "lit-rlhf help option NAME" in capsys.readouterr().err
