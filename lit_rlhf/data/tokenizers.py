"""Loading a tokenizer."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_rlhf.errors import ConfigurationError


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a directory or the hub.

    Raises:
        ConfigurationError: There is none.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError, KeyError, AttributeError) as error:
        where = (
            ""
            if Path(name).is_dir()
            else f"No such directory (looked in {Path.cwd()}); taken for a hub id. "
        )
        raise ConfigurationError(
            f"Can't load the tokenizer {name!r} (data option `tokenizer`). {where}Give the "
            "directory that the model was saved "
            f"to, a hub id, or from Python a tokenizer object. The cause: {' '.join(str(error).split())[:400]}"
        ) from error
    return tokenizer
