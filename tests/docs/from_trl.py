"""The tables of docs/howto/from_trl.md, of the one table that the command goes by. Run as a module, it writes them."""

from pathlib import Path

from lit_rlhf.cli.trl_options import COMMON, TASKS, Option

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "from_trl.md"
BEGIN, END = "<!-- tables -->\n", "<!-- end of tables -->\n"


def tables() -> str:
    """One table for each configuration class, and one for what all have."""
    sections = [(name, task.options) for name, task in TASKS.items()]
    named = [
        ("Options of all tasks", COMMON),
        *((f"`{name}`", options) for name, options in sections),
    ]
    return "\n".join(f"### {title}\n\n{_table(options)}" for title, options in named)


def _table(options: dict[str, Option]) -> str:
    lines = ["| TRL | here | |", "|---|---|---|"]
    lines += [
        f"| `{name}` | {each.ours or 'none'} | {each.note} |" for name, each in options.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    PAGE.write_text(head + BEGIN + tables() + END + rest.partition(END)[2], encoding="utf-8")
