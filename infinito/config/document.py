"""Documents made from the schema: the commented starting config and the JSON Schema."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from infinito.config.loading import dump_yaml
from infinito.config.schema import Config
from infinito.version import __version__

_WIDTH = 96
_HEADER = f"""\
# A config of infinito {__version__}: every key, its meaning, its range and its default.
# It runs as it is:  infinito train --config THIS_FILE
# A line may be left out to keep its default. Relative paths start at the working directory.
"""


def json_schema() -> str:
    """The JSON Schema of a config, for editors that complete and check YAML."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema = dialect | Config.model_json_schema()
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def init_document() -> str:
    """A commented config with every key at its default, on the embedded corpus."""
    schema = Config.model_json_schema()
    lines = list(_section_lines(schema, schema["$defs"], indent=""))
    return _HEADER + "\n".join(lines) + "\n"


def _section_lines(
    section: dict[str, Any], definitions: dict[str, Any], indent: str
) -> Iterator[str]:
    for name, field in section["properties"].items():
        yield ""
        inner = _referenced(field, definitions)
        if inner is None:
            yield from _comment(f"{field['description']} {_limits(field)}".strip(), indent)
            # The corpus alone has no default, so that no run trains on one that nobody chose.
            value = "python-docs" if name == "source" else field.get("default")
            yield indent + dump_yaml({name: value}).rstrip("\n")
        else:
            yield from _comment(field["description"], indent)
            yield f"{indent}{name}:"
            yield from list(_section_lines(inner, definitions, indent + "  "))[1:]


def _comment(text: str, indent: str) -> Iterator[str]:
    width = _WIDTH - len(indent) - 2
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return (f"{indent}# {line}" for line in lines)


def _referenced(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """The definition that a field of a section refers to, else None."""
    references = [field, *field.get("allOf", [])]
    for item in references:
        if "$ref" in item:
            found: dict[str, Any] = definitions[item["$ref"].rpartition("/")[2]]
            return found
    return None


def _limits(field: dict[str, Any]) -> str:
    """Type and range of a value in brackets, such as ``(whole number, 1 to 256, or null)``."""
    forms = field.get("anyOf", [field])
    parts = [_form_limits(form) for form in forms if form.get("type") != "null"]
    if len(parts) < len(forms):
        parts.append("or null")
    return f"({', '.join(parts)})"


def _form_limits(form: dict[str, Any]) -> str:
    choices = form.get("enum") or ([form["const"]] if "const" in form else [])
    if choices:
        return " | ".join(map(str, choices))
    names = {"integer": "whole number", "number": "number", "string": "text"}
    name = names.get(form["type"], "true or false")
    bounds = _bounds(form)
    return f"{name}, {bounds}" if bounds else name


def _bounds(form: dict[str, Any]) -> str:
    low, above = form.get("minimum"), form.get("exclusiveMinimum")
    high, below = form.get("maximum"), form.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{low:g} to {high:g}" if isinstance(high, float) else f"{low} to {high}"
    named = [("at least", low), ("above", above), ("at most", high), ("below", below)]
    return ", ".join(f"{word} {value}" for word, value in named if value is not None)
