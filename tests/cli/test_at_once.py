"""Command lines that are answered before anything is imported that takes seconds."""

import subprocess
import sys

import pytest

from lit_rlhf import __version__

AT_ONCE = {
    **dict.fromkeys(("", "--help"), "usage: lit-rlhf"),
    "--version": f"lit-rlhf {__version__}",
    "init": "preference/dpo_lora",
    "init ppo": "PPOPolicyModule",
    "from-trl --help": "usage: lit-rlhf from-trl",
    "help metrics objective/kl": "healthy:",
    "completion bash": "complete -o default",
    "dpo --help": "usage: lit-rlhf dpo",
    "fit --help": "PPOPolicyModule",
}
"""Command lines that need no model, and what they print."""
REFUSED_AT_ONCE = {
    "fit -c nonesuch": "There is no file 'nonesuch'",
    "fit -c reward --model.typo 1": "model: RewardModelModule has no option 'typo'.",
    "validate -c reward --data.init_args.trian=x": "has no option 'trian'. Did you mean train?",
    "dpo --model m --data d --model.batch 1": "model: PreferenceModule has no option 'batch'.",
    "generate --promt x": "there is no option --promt. Did you mean --prompt or --prompts?",
    "score --modle x": "there is no option --modle. Did you mean --model?",
    "chat m --sytem=x": "there is no option --sytem. Did you mean --system or --seed?",
}
"""Command lines that are wrong whatever any model is, and what they say."""


@pytest.mark.parametrize("words", [*AT_ONCE, *REFUSED_AT_ONCE])
def test_what_needs_no_model_answers_at_once(words: str) -> None:
    """Without what takes seconds to import."""
    heavy = {"torch", "lightning", "transformers", "peft", "datasets"}
    code = (
        "import atexit, sys; from lit_rlhf.cli.main import main; "
        f"atexit.register(lambda: print(sorted({heavy} & set(sys.modules)))); main({words.split()})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    shown, _, imported = result.stdout.strip().rpartition("\n")
    assert imported == "[]"
    assert result.returncode == (2 if words in REFUSED_AT_ONCE else 0)
    assert {**AT_ONCE, **REFUSED_AT_ONCE}[words] in shown + result.stderr
