"""What the pages tell one to run is run, page by page, in the order in which it stands there.

```bash and ```python blocks run; one with a title is saved under that name. ```sh and ```py blocks show what can't run
here: what installs, takes hours, serves, or needs several machines.
"""

import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from lit_rlhf.cli import main
from lit_rlhf.testing import tiny
from tests.docs.pages import PAGES, ROOT, blocks_of, text_of

FAST = {"concepts.md", "start.md", "howto/own_data.md"}
RUNNABLE = [
    page for page in PAGES if {block.language for block in blocks_of(page)} & {"bash", "python"}
]
TINY = "configs/overlays/tiny.yaml"
REWARD = Path("runs/reward/lora/export")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone as far as the pages go: configs/ beside data/, and a reward model for the pages that begin with one."""
    root = tmp_path_factory.mktemp("world")
    tiny.write_tiny_world(root / "data")
    (root / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        main(["fit", "-c", "configs/reward/lora.yaml", "-c", TINY])
    return root


@pytest.fixture
def workplace(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the page's own, in which its modules are found."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(world / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def on_tiny(words: list[str]) -> list[str]:
    """The same command with the overlay that makes it small, where it names configurations and not the overlay."""
    places = [i for i, word in enumerate(words) if word == "-c"]
    if not places or TINY in words or words[0] == "iterate":  # whose configuration is another
        return words
    last = places[-1] + 2
    return [*words[:last], "-c", TINY, *words[last:]]


def run_line(line: str) -> None:
    """Run a command of the package; any other is a mistake of the page."""
    words = shlex.split(line, comments=True)
    if words[:3] == ["python", "-m", "lit_rlhf.testing.tiny"]:
        tiny.main(words[3:])
        return
    if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
        assert find_spec(words[2])  # they want a machine of their own
        return
    assert words[0] == "lit-rlhf", f"a bash block runs; use sh for what can't: {line}"
    try:
        main(on_tiny(words[1:]))
    except SystemExit as stop:  # so `--print_config` ends; `verify` says so whether all rows passed
        if stop.code != 0 and words[1] != "verify":
            raise


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=() if p in FAST else pytest.mark.docs) for p in RUNNABLE]
)
def test_blocks_run(page: str, world: Path, workplace: Path) -> None:
    if "fit -c configs/reward/lora.yaml" not in text_of(page):
        shutil.copytree(world / REWARD, workplace / REWARD)
    names: dict[str, object] = {}
    for block in blocks_of(page):
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, page, "exec"), names)
        elif block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    run_line(line)
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict)


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_files_that_exist(page: str) -> None:
    """Of the blocks that don't run, too."""
    lines = [b.text for b in blocks_of(page) if b.language in ("bash", "sh")]
    words = [word for text in lines for word in shlex.split(text, comments=True)]
    named = [w for w in words if w.startswith(("configs/", "benchmarks/", "tests/"))]
    assert not [name for name in named if not (ROOT / name.partition("::")[0]).exists()]
