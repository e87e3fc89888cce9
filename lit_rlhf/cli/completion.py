"""`lit-rlhf completion`: what a shell needs to complete commands, options and names of configurations."""

import ast
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lit_rlhf.cli.commands import COMMANDS, RECIPES, TRAINING, WRITES, overwrites
from lit_rlhf.cli.help import RECIPE, TRAINING as TRAINING_HELP
from lit_rlhf.cli.output import print_text
from lit_rlhf.cli.shipped import RECIPES as SHORT_NAMES, config_names
from lit_rlhf.errors import ConfigurationError

WORDS = {"data": ["show", "inspect", "convert"], "help": ["metrics", "option"]}
WORDS["completion"] = ["bash", "zsh"]
"""Commands whose first word is one of a few."""
LIKE_FIT = ("estimate",)
"""Commands that take the options of `fit` beside their own."""
_FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*(?:\.[a-z]\w*)*")
_BASH = """\
_lit_rlhf() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
    if (( COMP_CWORD == 1 )); then
        words="{commands}"
    elif [[ $before == -c || $before == --config || $before == init ]]; then
        words="{configs}"
    else
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _lit_rlhf lit-rlhf
"""


def options_of(command: str) -> list[str]:
    """What may follow a command; read from its source, for to import some of them takes seconds."""
    module = COMMANDS[command].module
    if module in (RECIPES, TRAINING):
        said = (RECIPE if module == RECIPES else "") + TRAINING_HELP
        return [
            flag
            for flag in dict.fromkeys(_FLAG.findall(said))
            if flag not in ("--key", "--trainer")
        ]
    spec = find_spec(module)
    tree = ast.parse(Path(str(spec and spec.origin)).read_text(encoding="utf-8"))
    calls = [each for each in ast.walk(tree) if isinstance(each, ast.Call) and each.args]
    first = [each.args[0].value for each in calls if isinstance(each.args[0], ast.Constant)]
    classes = [each for each in calls if ast.unparse(each.func).endswith("add_subclass_arguments")]
    first += [f"--{ast.literal_eval(each.args[1])}" for each in classes]
    named = []
    values = {
        ast.unparse(each.target): each.value
        for each in tree.body
        if isinstance(each, ast.AnnAssign)
    }
    if isinstance(special := values.get("SPECIAL"), ast.Dict):
        first += [key.value for key in special.keys if isinstance(key, ast.Constant)]
    for each in tree.body:
        if isinstance(each, ast.FunctionDef) and "Args:" in (said := ast.get_docstring(each) or ""):
            required = len(each.args.args) - len(each.args.defaults)
            arguments = each.args.args[required if command in WORDS else 0 :]  # those are places
            told = [a.arg for a in arguments if f"{a.arg}: No option" not in said]
            named += [f"--{name}" for name in told if name not in first]
    if any(map(overwrites, [each for each in WRITES if each.split()[0] == command])):
        named.append("--overwrite")
    flags = [text for text in first if isinstance(text, str) and _FLAG.fullmatch(text)]
    if command in LIKE_FIT:
        flags += [flag for flag in options_of("fit") if flag != "--seeds"]
    return list(dict.fromkeys([*WORDS.get(command, []), *named, *flags]))


def script(shell: str) -> str:
    """The text that a shell reads.

    Args:
        shell: No option: bash or zsh.

    Raises:
        ConfigurationError: A shell that isn't known.
    """
    if shell not in WORDS["completion"]:
        raise ConfigurationError(
            f"No completion for {shell!r} is known. It is `lit-rlhf completion bash` or `... zsh`; "
            "lit-rlhf completion --help says what for."
        )
    cases = "\n".join(
        f'            {name}) words="{" ".join(options_of(name))}" ;;' for name in COMMANDS
    )
    configs = " ".join([*SHORT_NAMES, *config_names()])
    text = _BASH.format(commands=" ".join(COMMANDS), configs=configs, cases=cases)
    return f"autoload -U +X bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text


def run(words: Sequence[str]) -> None:
    """Print the script."""
    asked = words[1:]
    if not asked or asked[0] in ("-h", "--help"):
        print_text(
            "usage: lit-rlhf completion bash|zsh\n\n"
            "Prints what the shell reads to complete commands, options and names of configurations:\n"
            '  bash: eval "$(lit-rlhf completion bash)" in ~/.bashrc; zsh likewise, in ~/.zshrc behind compinit\n'
        )
        return
    if len(asked) > 1:
        raise ConfigurationError(f"{' '.join(asked)} is no shell: lit-rlhf completion --help.")
    print_text(script(asked[0]))
