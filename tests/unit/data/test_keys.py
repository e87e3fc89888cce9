"""The key of the cache: what decides the tokens changes it, what doesn't leaves it, what can't be known isn't kept."""

import ast
import importlib
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.data import (
    ExplicitPrompt,
    Format,
    PreferenceDataModule,
    Record,
    RowsSource,
    keys as keys_module,
)
from lit_rlhf.data.keys import UnknownContentError, content_key, describe
from lit_rlhf.testing import make_tokenizer, tiny_preferences
from tests.unit.data.contract import ready

SEPARATOR = ""


class Mine(Format):
    def __init__(self, column: str) -> None:
        self.column = column

    def __call__(self, row: Mapping[str, Any]) -> list[Record]:
        return [Record(row["prompt"], (row[self.column] + SEPARATOR, row["rejected"]))]


@dataclass
class Weighted(Format):
    weights: dict[str, float] = field(default_factory=dict)
    suffix: str = "."

    def __call__(self, row: Mapping[str, Any]) -> list[Record]:
        return [Record(row["prompt"], (row["chosen"] + self.suffix, row["rejected"]))]


class Forgetful(Mine):
    def __init__(self, name: str) -> None:
        super().__init__(name)


class Calling(Format):
    def __init__(self, change: Callable[[str], str]) -> None:
        self.change = change

    def __call__(self, row: Mapping[str, Any]) -> list[Record]:
        return [Record(row["prompt"], (self.change(row["chosen"]), row["rejected"]))]


class Edited(PreferenceDataModule):
    def __init__(self, *args: Any, suffix: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.suffix = suffix

    def records(self, row: Mapping[str, Any]) -> list[Record]:
        return [Record(row["prompt"], (row["chosen"] + self.suffix, row["rejected"]))]


class Backwards(PreferenceDataModule):
    def records(self, row: Mapping[str, Any]) -> list[Record]:
        return [Record(row["prompt"], (row["rejected"], row["chosen"]))]


def key(
    rows: int = 6, kind: type[PreferenceDataModule] = PreferenceDataModule, **options: Any
) -> str:
    options.setdefault("tokenizer", make_tokenizer())
    return kind(RowsSource(tiny_preferences(rows)), **options).dataset_hash


def within(suffix: str) -> Format:
    class Local(Format):
        def __call__(self, row: Mapping[str, Any]) -> list[Record]:
            return [Record(row["prompt"], (row["chosen"] + suffix, row["rejected"]))]

    return Local()


class TestOptions:
    def test_what_leaves_the_tokens_alone_leaves_the_key(self) -> None:
        other = {"batch_size": 3, "seed": 4, "num_workers": 2, "cache_dir": "/elsewhere"}
        assert key() == key(**other, bucket_batches=1, max_invalid=1.0, layout="rows")

    def test_what_changes_the_tokens_changes_the_key(self) -> None:
        options: list[dict[str, Any]] = [
            {},
            {"rows": 7},
            {"tokenizer": make_tokenizer(merges=())},
            {"tokenizer": make_tokenizer(bos=True)},
            {"max_prompt_length": 50},
            {"max_completion_length": 50},
            {"too_long": "truncate"},
            {"too_long": "truncate", "cut_prompt": "end"},
            {"invalid": "error"},
            {"format": ExplicitPrompt(margin=None)},
            {"format": Mine("chosen")},
            {"format": Mine("rejected")},
            {"format": within("a")},
            {"format": within("b")},
            {"format": Calling(lambda text: text + "a")},
            {"format": Calling(lambda text: text + "b")},
            {"kind": Backwards},
            {"kind": Edited},
            {"kind": Edited, "suffix": "!"},
            {"val_fraction": 0.2},
            {"val_fraction": 0.2, "split_seed": 1},
        ]
        found = [key(**option) for option in options]
        assert len(set(found)) == len(found)
        assert key(format=Mine("chosen")) == key(format=Mine("chosen"))

    def test_an_edited_template_changes_the_key(self) -> None:
        tokenizer = make_tokenizer()
        tokenizer.chat_template = "{{ messages }}"
        assert key(tokenizer=tokenizer) != key()

    def test_a_constant_that_is_set_from_outside_changes_the_key(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = describe(Mine("chosen"))
        monkeypatch.setattr(sys.modules[__name__], "SEPARATOR", "!")
        assert describe(Mine("chosen")) != before

    def test_fields_of_a_dataclass_are_known_by_their_values(self) -> None:
        assert describe(Weighted()) == describe(Weighted({}, "."))
        others = [describe(each) for each in (Weighted({"a": 1.0}), Weighted({}, "!"))]
        assert describe(Weighted()) not in others

    def test_keys_are_stable_within_sets_and_nested_values(self) -> None:
        assert content_key({"a": {2, 1}, "b": (1, [2])}) == content_key(
            {"b": [1, (2,)], "a": {1, 2}}
        )


HELPER = '''"""Helps."""


def clean(text):
    """Cleans."""
    return text.strip()
'''
FORMAT = '''from lit_rlhf.data import Format, Record
{imports}


class Cleaned(Format):
    {version}

    def __call__(self, row):
        """One record."""
        return [Record(row["prompt"], (clean(row["chosen"]), row["rejected"]))]
'''


class TestCode:
    @pytest.fixture
    def of(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
        """The key with a format of a module of one's own that has a helper module."""
        monkeypatch.syspath_prepend(tmp_path)
        names = ("my_package", "my_package.formats", "my_package.helper")

        def forget() -> None:
            for name in names:
                sys.modules.pop(name, None)
            keys_module._is_users.cache_clear()
            importlib.invalidate_caches()

        def make(
            helper: str = HELPER,
            imports: str = "from my_package.helper import clean",
            version: str = "",
        ) -> str:
            package = tmp_path / "my_package"
            package.mkdir(exist_ok=True)
            (package / "__init__.py").write_text("")
            (package / "helper.py").write_text(helper)
            (package / "formats.py").write_text(
                FORMAT.format(imports=imports, version=version or "pass")
            )
            forget()
            monkeypatch.setattr("sys.dont_write_bytecode", True)
            return key(format=importlib.import_module("my_package.formats").Cleaned())

        yield make
        forget()

    @pytest.mark.parametrize(
        "imports",
        [
            "from my_package.helper import clean",
            "from .helper import clean",
            "import my_package.helper\nclean = my_package.helper.clean",
            "from . import helper\nclean = lambda text: helper.clean(text)",
        ],
    )
    def test_an_edited_helper_changes_the_key(self, of: Callable[..., str], imports: str) -> None:
        before = of(imports=imports)
        assert of(imports=imports) == before
        assert of(HELPER.replace("strip()", "lower()"), imports) != before

    def test_comments_docstrings_and_line_breaks_do_not(self, of: Callable[..., str]) -> None:
        before = of()
        assert (
            of(
                HELPER.replace("Cleans.", "Makes clean.").replace(
                    "text.strip()", "(\n  text.strip())  # so"
                )
            )
            == before
        )

    def test_a_stated_version_stands_for_the_code(self, of: Callable[..., str]) -> None:
        before = of(version="version = 1")
        assert of(HELPER.replace("strip()", "lower()"), version="version = 1") == before
        assert of(version="version = 2") != before

    def test_edited_code_of_the_library_changes_the_key(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = key()
        monkeypatch.setattr("lit_rlhf.data.prepared.code_of_preparation", lambda: "edited")
        assert key() != before

    def test_what_the_code_of_the_key_imports_of_the_data_is_in_the_key(self) -> None:
        modules = [f"lit_rlhf.data.{name}" for name in keys_module._PREPARING]
        trees = [ast.parse(inspect.getsource(importlib.import_module(name))) for name in modules]
        found = {
            each.module
            for tree in trees
            for each in ast.walk(tree)
            if isinstance(each, ast.ImportFrom) and each.module
        }
        of_data = {name for name in found if name.startswith("lit_rlhf.data.")}
        # Names of the formats again; where the cache lies.
        assert of_data - {"lit_rlhf.data.formats", "lit_rlhf.data.rows"} <= {*modules}


class Logging(PreferenceDataModule):
    """Keeps what no key could be made of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.logger = logging.getLogger("mine")
        self.lock = threading.Lock()
        super().__init__(*args, **kwargs)
        self.itself = self


class Stating(PreferenceDataModule):
    def __init__(self, *args: Any, table: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def cache_key(self) -> Any:
        return "stated"


class TestWhatCannotBeKnown:
    def test_loggers_locks_and_circles_on_a_data_module_do_no_harm(self) -> None:
        assert key(kind=Logging) == key(kind=Logging)
        assert key(kind=Logging) != key()

    def test_a_data_module_may_say_itself_what_counts(self) -> None:
        assert key(kind=Stating, table={"a": 1}) == key(kind=Stating, table={"a": 2})

    @pytest.mark.parametrize(
        "value",
        [threading.Lock(), logging.getLogger("mine"), iter([])],
        ids=lambda value: type(value).__name__,  # an address differs between xdist's processes
    )
    def test_objects_of_others_have_no_description(self, value: object) -> None:
        with pytest.raises(UnknownContentError, match="is not known"):
            describe(value)

    def test_nothing_is_kept_then_and_it_is_said(self, caplog: pytest.LogCaptureFixture) -> None:
        def module(column: str) -> PreferenceDataModule:
            rows = RowsSource(tiny_preferences(6))
            options: dict[str, Any] = {"tokenizer": make_tokenizer(), "format": Forgetful(column)}
            return ready(PreferenceDataModule(rows, batch_size=1, **options))  # type: ignore[return-value]

        with caplog.at_level(logging.WARNING, logger="lit_rlhf"):
            first = module("chosen")
        assert "Tokens are not kept for the next run" in caplog.text
        assert "Forgetful has the option 'name'" in caplog.text
        second = module("prompt")
        tokens = [each.rows["train"][0]["completion_ids"] for each in (first, second)]
        assert tokens[0] != tokens[1]
        assert first.dataset_hash != second.dataset_hash

    def test_code_without_a_source_is_not_kept(self) -> None:
        space: dict[str, Any] = {"Format": Format, "__name__": "nowhere"}
        exec("class Typed(Format):\n    def __call__(self, row): return []", space)
        with pytest.raises(UnknownContentError):
            describe(space["Typed"]())
