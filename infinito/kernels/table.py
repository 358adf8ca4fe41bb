"""One operation in several variants: which one serves a request, and why.

A choice is made by capability and never by timing: ``auto`` takes the first variant of the table
that has no objection; a forced one that objects is a ConfigError. The last variant is the plain
twin of the others: it serves every request, and tests hold the others to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from infinito.errors import ConfigError
from infinito.runtime.choice import Choice

Request = TypeVar("Request")


@dataclass(frozen=True)
class Variant(Generic[Request]):
    """One form of an operation.

    Attributes:
        merit: what it is, for people.
        objection: why it cannot serve a request, or None.
        run: serves it.
        remedy: what a user can do where this machine lacks what it needs.
    """

    merit: Callable[[], str]
    objection: Callable[[Request], str | None]
    run: Callable[..., Any]
    remedy: str = ""


def no_objection(_: object) -> str | None:
    """Of a variant that serves every request."""
    return None


@dataclass(frozen=True)
class Operation(Generic[Request]):
    """What is computed, and the variants that compute it, in the order in which ``auto`` asks.

    Attributes:
        name: for people.
        variants: by name.
        sample: a usual request on a type of device, for ``doctor`` and the benchmarks.
    """

    name: str
    variants: Mapping[str, Variant[Request]]
    sample: Callable[[str], Request]

    def select(self, request: Request, forced: str = "auto") -> str:
        """The variant's name alone: what every call does, and what torch.compile traces."""
        if forced == "auto":
            return next(n for n, v in self.variants.items() if v.objection(request) is None)
        if forced not in self.variants:
            raise ConfigError(
                f"unknown {self.name} backend {forced!r}",
                f"choose one of auto, {', '.join(self.variants)}",
            )
        objection = self.variants[forced].objection(request)
        if objection is not None:
            raise ConfigError(
                f"{self.name} backend {forced!r} cannot serve this: {objection}",
                f"use auto (here: {self.select(request)})",
            )
        return forced

    def choose(self, request: Request, forced: str = "auto") -> Choice:
        """Which variant serves a request, and why.

        Raises:
            ConfigError: ``forced`` is unknown, or cannot serve the request.
        """
        name = self.select(request, forced)
        merit = self.variants[name].merit()
        if forced != "auto":
            return Choice(name, f"{merit}; as asked for")
        before = list(self.variants)[: list(self.variants).index(name)]
        passed = [f"not {other}: {self.variants[other].objection(request)}" for other in before]
        return Choice(name, "; ".join([merit, *passed]))

    def available(self, request: Request) -> dict[str, Choice | str]:
        """Every variant with its merit (a Choice) or its objection (a str) to a request."""
        return {
            name: variant.objection(request) or Choice(name, variant.merit())
            for name, variant in self.variants.items()
        }
