"""Single keys given on the command line: ``--set KEY=VALUE``, and flags that stand for a key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from infinito.config.explain import UNKNOWN_KEY, Place, Problem, printable
from infinito.config.keys import all_keys, section_class, value_keys
from infinito.config.yaml_loader import KeyPath, parse_value


@dataclass
class Overrides:
    """Values by key path, the place each was given, and what was wrong with the rest."""

    values: dict[KeyPath, object] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, key: str, value: object, place: Place) -> None:
        """Record one value; a section or an unknown key becomes a problem."""
        if section_class(key):
            inside = next(name for name in value_keys() if name.startswith(f"{key}."))
            reason = f"is a section: set one of its keys, such as {inside}"
            self.problems.append(Problem(place, key, reason))
        elif key not in all_keys():
            self.problems.append(Problem(place, key, UNKNOWN_KEY, value))
        else:
            path = tuple(key.split("."))
            self.values[path], self.places[path] = value, place

    def apply(self, base: Mapping[str, object]) -> dict[str, object]:
        """``base`` with every value put in. What is not a section in ``base`` stays for the schema.

        ``base`` itself is not changed.
        """
        result = deepcopy(dict(base))
        for (*sections, name), value in self.values.items():
            holder: Any = result
            for section in sections:
                holder = holder.setdefault(section, {}) if isinstance(holder, dict) else None
            if isinstance(holder, dict):
                holder[name] = value
        return result


def parse_overrides(settings: Sequence[str], extra: Mapping[str, object]) -> Overrides:
    """Read ``KEY=VALUE`` settings and ``{dotted key: value}`` of other flags (None: not given).

    Of two settings of one key the later counts, and a flag beats both: the nearer to the end of a
    command line, the more a value was meant.
    """
    overrides = Overrides()
    for setting in settings:
        _add_setting(overrides, setting)
    for key, value in extra.items():
        if value is not None:
            overrides.add(key, value, Place("command line"))
    return overrides


def _add_setting(overrides: Overrides, setting: str) -> None:
    key, equals, text = setting.partition("=")
    key, place = key.strip(), Place(f"--set {printable(setting)}")
    if not key or not equals:
        overrides.problems.append(Problem(place, key or "KEY", "expected KEY=VALUE"))
    elif not text.strip():
        reason = "no value after '='; null takes a value away"
        overrides.problems.append(Problem(place, key, reason))
    else:
        try:
            overrides.add(key, parse_value(text), place)
        except ValueError as error:
            overrides.problems.append(Problem(place, key, str(error)))
