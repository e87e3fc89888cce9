"""Of jsonargparse, read from 4.53: its loader of values, its words of refusal, its JSON schema of a parser.

It raises one type of error for all that is wrong with a command line, so what is wrong can only be read in its text.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jsonargparse
import yaml
from jsonargparse._completions_jsonschema import ParserJsonschema
from jsonargparse._loaders_dumpers import (
    dump_yaml_kwargs,
    get_loader_exceptions,
    yaml_load,
)
from jsonargparse._typehints import get_all_subclass_paths
from jsonargparse._util import import_object

# It tells of each member of a union why it doesn't fit, and repeats what was given: the whole configuration.
_NOISE = re.compile(
    r"^(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value type: .*|Given value: .*"
    r"|(- )?Expected a <class 'NoneType'>|Expected a path but (?!\S*(?:/|\.ya?ml\b)).*"
    r"|Subclass types expect one of:|a class path \(str\)|a dict with(out)? .*)$"
)
_CALLABLE = re.compile("^Type .*? callable class: ")
_KEY = re.compile(r'^Parser key "(?P<key>.+?)":\s*(?P<rest>.*)$')
_CLASS = re.compile(r"^Problem with given class_path '(?P<path>.+)':$")
_VALUE = re.compile(r"^Given value: (?P<value>.*?)(\. Got value: .*)?$")
_KINDS = {
    "option": re.compile(
        r"^Option '(?P<word>.+?)' is not accepted"
        r"(?:\. Got value: Namespace\(class_path='(?P<path>[\w.]+)'.*)?$"
    ),
    "subclass": re.compile(r"^Not a valid subclass of (?P<word>\w+)(?:\. Got value: .*)?$"),
    "group": re.compile(
        r"^(?:Unable to load config ['\"]|Expected a <class 'NoneType'>\. Got value: )(?P<word>.+?)['\"]?$"
    ),
    "nowhere": re.compile(r"^Subcommand '\w+' does not accept option '(?P<word>.+)'$"),
    "class": re.compile(r"^(?:--\S+: )?Expected a dot import path string: (?P<word>\S+)$"),
    "module": re.compile(r"^No module named '(?P<word>.+)'$"),
    "attribute": re.compile(r"^module '(?P<path>.+)' has no attribute '(?P<word>.+)'$"),
    "abstract": re.compile(
        r"^Expected an instantiatable class, but (?P<word>\S+) is abstract(?:\. Got value: .*)?$"
    ),
    "place": re.compile(r"^Expected a path but (?P<word>\S+) either not accessible or invalid$"),
    "required": re.compile(
        r"^the following arguments are required: (?P<word>.+?)(?:\. Got value: .*)?$"
    ),
    "unknown": re.compile(r"^unrecognized arguments: (?P<word>.+)$"),
}


class Complaint(NamedTuple):
    """A line of a refusal."""

    kind: str  # one of `_KINDS`, or "other"
    word: str  # what there isn't, what is required; empty for others
    path: str  # of the class whose option was refused or the module without an attribute; may be empty
    text: str


class Refusal(NamedTuple):
    """What the parser says, without what it says for itself."""

    key: str  # dotted, of the innermost option
    complaints: list[Complaint]
    value: str  # the innermost value that fits no type; may be empty


def read_refusal(text: str) -> Refusal:
    """Take a message of the parser apart."""
    keys: list[str] = []
    complaints: list[Complaint] = []
    path = value = ""
    for raw in text.splitlines():
        line = _CALLABLE.sub("", raw.strip().removeprefix("- "))
        if not value and (match := _VALUE.match(line)):
            value = match["value"]
        if not line or _NOISE.match(line):
            continue
        if match := _KEY.match(line):
            if not match["rest"].startswith("Unable to load config"):  # which it says twice
                keys.append(match["key"])
            line = match["rest"]
        elif match := _CLASS.match(line):
            path, line = match["path"], ""
        if line and (complaint := _complaint(line, path)) not in complaints:
            complaints.append(complaint)
    return Refusal(".".join(keys), complaints, value)


def _complaint(line: str, path: str) -> Complaint:
    for kind, pattern in _KINDS.items():
        if match := pattern.match(line):
            return Complaint(kind, match["word"], match.groupdict().get("path") or path, line)
    line = re.sub(r"^Not of type \w+: ", "", line)  # what a type of ours says
    line = re.sub(r"<class '(.+?)'>", r"\1", line).replace("Expected a ", "Expected ")
    line = re.sub(r"(?:typing\.)?Literal\[(.+?)\]", r"one of \1", line)
    return Complaint("other", "", path, line)


def named_classes(*bases: type) -> list[str]:
    """Short names by which a configuration can name the subclasses of some classes."""
    paths = (path for base in bases for path in get_all_subclass_paths(base))
    return sorted({path.rpartition(".")[2] for path in paths})


def read_none_as_null() -> None:
    """Read `None` as YAML reads `null`, everywhere.

    A `null` for an option of an option's option is handed from parser to parser as text, as Python writes it.
    """
    jsonargparse.set_loader("yaml", _load, get_loader_exceptions("yaml"))


def write_words_as_text() -> None:
    """Write words of an enumeration as text where an option is text, as `interval` of Lightning's `Timer` by default.

    PyYAML refuses them, and the parser writes all that it reads.
    """
    jsonargparse.set_dumper("yaml", _dump)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    pass


_Dumper.add_multi_representer(str, lambda dumper, word: dumper.represent_str(str.__str__(word)))


def _dump(data: object) -> str:
    text: str = yaml.dump(data, Dumper=_Dumper, **dump_yaml_kwargs)
    return text


def _load(text: str) -> object:
    return None if text == "None" else yaml_load(text)


def flat_options(config: object, key: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Key, class and options of every class in a parsed configuration."""
    if isinstance(config, list):
        for entry in config:
            yield from flat_options(entry, key)
    elif isinstance(config, jsonargparse.Namespace):
        options = vars(config)
        inner = options.get("init_args")
        if isinstance(path := options.get("class_path"), str):
            own = vars(inner) if isinstance(inner, jsonargparse.Namespace) else {}
            yield key, import_object(path), own
        for name, value in options.items():
            place = key if name == "init_args" else f"{key}.{name}".lstrip(".")
            yield from flat_options(value, place)


_HOMES = ("lit_rlhf.", "lightning.", "torch.optim.")


def json_schema(parser: jsonargparse.ArgumentParser) -> dict[str, Any]:
    """The JSON schema of the files that a parser reads; each may be a part of the whole, so nothing is required."""
    schema: dict[str, Any] = _Schema().generate(parser)
    schema.pop("required", None)
    _drop_required(schema["properties"])
    schema["properties"]["trainer"]["type"] = ["object", "string"]  # or a file that holds it
    return schema


class _Schema(ParserJsonschema):
    """Theirs knows full class paths alone, asks for all that a class needs, and fails at the class `type`."""

    def subclass_def(self, class_type: Any, action: Any) -> dict[str, Any]:
        paths = [] if class_type is type else get_all_subclass_paths(class_type)
        known = {path: path.rpartition(".")[2] for path in paths if path.startswith(_HOMES)}
        cases = []
        for path, name in known.items():
            either = {"class_path": {"enum": [path, name]}}
            named = {"properties": either, "required": ["class_path"]}
            options = {"properties": {"init_args": self.class_parser_schema(path, action)}}
            cases.append({"if": named, "then": options})
        return {
            "type": ["object", "string"],  # or a class's name, or a file that holds all this
            "additionalProperties": False,
            "properties": {
                "class_path": {"type": "string", "examples": list(known.values())},
                "init_args": {"type": "object"},
                "dict_kwargs": {"type": "object"},
            },
            **({"allOf": cases} if cases else {}),
        }

    def callable_schema(self, typehint: Any, action: Any) -> dict[str, Any]:
        schema: dict[str, Any] = super().callable_schema(typehint, action)
        # One that returns either of several classes, as a schedule, is to them a name alone.
        return {"type": ["object", "string"]} if schema == {"type": "string"} else schema

    def class_parser_schema(
        self, class_type: Any, action: Any, description: str | None = None
    ) -> dict[str, Any]:
        schema: dict[str, Any] = super().class_parser_schema(class_type, action, description)
        _drop_required(schema)
        return schema


def _drop_required(schema: Any) -> None:
    if isinstance(schema, dict):
        if isinstance(schema.get("required"), list):
            del schema["required"]
        for inner in schema.values():
            _drop_required(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _drop_required(inner)
