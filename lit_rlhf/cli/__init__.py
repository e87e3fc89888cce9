"""The command line: `lit-rlhf COMMAND ...`, the same as `python -m lit_rlhf`."""

from lit_rlhf.cli.main import main as main
