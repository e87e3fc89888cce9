"""Of jsonargparse, read from 4.53: its JSON schema of a parser, for files that are merged and classes with short names."""

from typing import Any

import jsonargparse
from jsonargparse._completions_jsonschema import ParserJsonschema
from jsonargparse._typehints import get_all_subclass_paths

_HOMES = ("lit_rlhf.", "lightning.", "torch.optim.")


def json_schema(parser: jsonargparse.ArgumentParser) -> dict[str, Any]:
    """The JSON schema of the files that a parser reads; each may be a part of the whole, so nothing is required."""
    schema: dict[str, Any] = _Schema().generate(parser)  # type: ignore[no-untyped-call]
    schema.pop("required", None)
    _drop_required(schema["properties"])
    schema["properties"]["trainer"]["type"] = ["object", "string"]  # or a file that holds it
    return schema


class _Schema(ParserJsonschema):
    """Theirs knows full class paths alone, asks for all that a class needs, and fails at the class `type`."""

    def subclass_def(self, class_type: Any, action: Any) -> dict[str, Any]:
        paths = [] if class_type is type else get_all_subclass_paths(class_type)
        known = {path: path.rpartition(".")[2] for path in paths if path.startswith(_HOMES)}
        cases = [
            {
                "if": {
                    "properties": {"class_path": {"enum": [path, name]}},
                    "required": ["class_path"],
                },
                "then": {"properties": {"init_args": self.class_parser_schema(path, action)}},
            }
            for path, name in known.items()
        ]
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
