"""`lit-rlhf schema`: what editors need to complete and check a configuration."""

import json
from pathlib import Path

from lit_rlhf.cli.building import config_schema
from lit_rlhf.cli.output import print_text
from lit_rlhf.files import write_text


def schema(output: Path | None = None) -> None:
    """Print the JSON schema of configurations, by which editors complete and check them.

    Args:
        output: File to write; default: standard output.
    """
    text = json.dumps(config_schema(), indent=2) + "\n"
    if output is None:
        print_text(text)
    else:
        write_text(output, text)
