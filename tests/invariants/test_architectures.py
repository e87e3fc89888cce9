"""The walk over architectures: right to the last digits, or refused with a sentence. `-m matrix` walks all of them."""

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import transformers

from tests import walks
from tests.reference.architectures import SWITCH, TYPES, WINDOW, at_most, build, tiny_config
from tests.reference.walk import Found, walk

# Recurrent layers compute a row in chunks and a decode step by step.
TOLERANCE = {
    "expanded": 1e-5,
    "shared": 1e-5,
    "forced": 1e-5,
    "exported": 1e-5,
    "native": 2e-4,
    "hf": 2e-4,
}
BF16_TOLERANCE = dict.fromkeys(
    TOLERANCE, 2.0
)  # times plain transformers' own distance from float32
WINDOWED = {"gemma2", "gemma3_text", "mistral", "olmo3", "gpt_oss"}
FAMILIES = [
    "llama",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "mistral",
    "olmo3",
    "gpt_oss",
    "gpt2",
    "gpt_neox",
    "mixtral",
    "phi3",
    "opt",
    "gpt_neo",
    "diffllama",
    "doge",
    "bert",
]
TABLE = Path(__file__).parents[2] / "docs/MODELS.md"
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, of configs that nobody ships


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def check(found: Mapping[str, Found], tolerance: Mapping[str, float]) -> None:
    wrong = {k: v.gap for k, v in found.items() if not v.refused and v.gap > tolerance[k]}
    assert not wrong
    for way in found.values():
        assert not way.refused or way.refused.endswith((".", "!")), way.refused


@pytest.mark.parametrize("model_type", walks.walk(FAMILIES, "llama", "qwen3", "gpt2"))
def test_families_are_right_or_refused(model_type: str, tmp_path: Path) -> None:
    build(tiny_config(model_type), tmp_path / "model")
    found = walk(tmp_path / "model", tmp_path / "export")
    check(found, TOLERANCE)
    if model_type not in ("doge", "bert", "phi3"):
        assert not found["expanded"].refused
        assert not found["exported"].refused
    assert model_type not in WINDOWED or not found["native"].refused


@pytest.mark.parametrize("model_type", walks.walk(FAMILIES, "llama", "qwen3", "gpt2"))
def test_bfloat16_rounds_no_more_than_in_transformers(model_type: str, tmp_path: Path) -> None:
    build(tiny_config(model_type), tmp_path / "model")
    found = walk(tmp_path / "model", tmp_path / "export", dtype="bfloat16")
    check(found, BF16_TOLERANCE)
    if model_type not in ("doge", "bert", "phi3"):
        assert not found["expanded"].refused


def test_rows_are_longer_than_windows_and_switches() -> None:
    gemma, phi = tiny_config("gemma2"), tiny_config("phi3")
    assert gemma.sliding_window == WINDOW < 20
    assert phi.rope_parameters["original_max_position_embeddings"] == SWITCH < 20


@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_every_type_is_right_or_refused(tmp_path: Path) -> None:
    lines, failed, unbuilt = [], {}, []
    for model_type in TYPES:
        directory = tmp_path / model_type
        try:
            with at_most(60):
                build(tiny_config(model_type), directory / "model")
        except Exception as error:  # noqa: BLE001
            unbuilt.append(f"`{model_type}` ({type(error).__name__})")
            continue
        try:
            with at_most(120):
                found = walk(directory / "model", directory / "export")
        except Exception as error:  # noqa: BLE001
            failed[model_type] = f"{type(error).__name__}: {error}"
            continue
        wrong = {k: v.gap for k, v in found.items() if not v.refused and v.gap > TOLERANCE[k]}
        if wrong:
            failed[model_type] = str(wrong)
        lines.append(line(model_type, found))
    TABLE.write_text(
        HEAD.format(
            version=transformers.__version__,
            torch=torch.__version__.split("+")[0],
            count=len(lines),
            all=len(TYPES),
        )
        + "\n".join(lines)
        + "\n\n"
        + textwrap.fill(
            TAIL.format(unbuilt=", ".join(unbuilt)),
            120,
            break_long_words=False,
            break_on_hyphens=False,
        )
        + "\n",
        encoding="utf-8",
    )
    assert not failed


def line(model_type: str, found: Mapping[str, Found]) -> str:
    cells = [found[k].cell(TOLERANCE[k]) for k in ("shared", "native", "hf", "exported")]
    ways = {"yes": "yes", "refused": "no"}
    if not found["shared"].refused:
        cells.insert(1, ways.get(found["forced"].cell(TOLERANCE["forced"]), "**wrong**"))
    else:
        cells.insert(1, "no")
    said = found["expanded"].refused or found["native"].refused
    said = said.replace(str(Path.cwd()), "").replace("|", "\\|")
    return f"| `{model_type}` | {' | '.join(cells)} | {said.split('. ')[0][:160]} |"


HEAD = """# Models

Every causal language model type of transformers {version} (torch {torch}) that can be built tiny from its config, {count} of
{all}, against plain transformers, one row at a time: log-probs of training batches within 1e-5 in float32, of rollouts
and exports too (2e-4 where a decode steps through recurrent layers), with rows longer than every window of the config.
What isn't right to that is refused, at loading or at first use. Written by
`pytest -m matrix tests/invariants/test_architectures.py`.

- **trains**: log-probs of branched batches; **shares**: prompts are computed once for all branches, at lengths beyond
  the tiny config's window too (types with windows share within them alone, and so say "no" here);
- **NativeEngine**, **HFEngine**: log-probs of sampled tokens are those of a forward pass;
- **exports**: the merged export, read by plain transformers, gives the same log-probs.

| type | trains | shares | NativeEngine | HFEngine | exports | why not |
|---|---|---|---|---|---|---|
"""
TAIL = (
    "Not built tiny from the default config, so not tried here (loading and the first rollout check them all the "
    "same): {unbuilt}."
)
