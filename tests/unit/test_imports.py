"""Imports go one way, and the light packages stay light; read from the source, not run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "infinito"

# A part may import parts of its own rank and below; within a rank no circle may arise.
RANKS = (
    ("errors", "version"),
    ("attention", "config", "distributed", "kernels", "runtime", "tokenizer"),
    ("model", "data", "optim", "checkpoint", "telemetry", "fusion"),
    ("load",),
    ("train", "evaluate", "generate", "analyze", "search", "export", "hf", "report"),
    ("bench",),
    ("optimise",),
    ("cli",),
    ("__init__", "__main__"),
)
RANK_OF = {part: rank for rank, parts in enumerate(RANKS) for part in parts}
LIGHT = ("cli", "config", "errors", "search", "version", "__init__", "__main__")
HEAVY = {"torch", "numpy", "datasets", "tokenizers", "matplotlib", "safetensors", "transformers"}


def files_of(part: str) -> list[Path]:
    single = PACKAGE / f"{part}.py"
    return [single] if single.is_file() else sorted((PACKAGE / part).rglob("*.py"))


def parts() -> list[str]:
    found = {
        p.stem if p.suffix == ".py" else p.name
        for p in PACKAGE.iterdir()
        if p.suffix in ("", ".py")
    }
    return sorted(found - {"__pycache__"})


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that an import in ``tree`` mentions, at any depth of the code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run at import: no function bodies, no ``if TYPE_CHECKING``."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        statement = pending.pop()
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        yield statement
        pending += [
            child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)
        ]


def part_of(name: str) -> str | None:
    """``infinito.config.loading`` is of part ``config``; None for other packages and the API."""
    pieces = name.split(".")
    if pieces[0] != "infinito" or len(pieces) == 1:
        return None
    return pieces[1] if pieces[1] in RANK_OF and pieces[1] in parts() else "__init__"


def imports_of(part: str) -> dict[str, str]:
    """The parts that ``part`` imports, each with a file that does."""
    found = {}
    for path in files_of(part):
        for name in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
            target = part_of(name)
            if target not in (None, part):
                found[str(target)] = str(path.relative_to(ROOT))
    return found


def test_every_part_has_a_rank() -> None:
    assert [part for part in parts() if part not in RANK_OF] == []


def test_imports_go_down_only() -> None:
    wrong = [
        f"{path} imports {target}"
        for part in parts()
        for target, path in imports_of(part).items()
        if RANK_OF[target] > RANK_OF[part]
    ]
    assert wrong == []


def test_there_is_no_circle() -> None:
    graph = {
        part: set(imports_of(part)) for part in parts() if part not in ("__init__", "__main__")
    }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle
    assert set(graph) <= set(order)


@pytest.mark.parametrize("part", LIGHT)
def test_light_parts_import_nothing_heavy_at_module_level(part: str) -> None:
    for path in files_of(part):
        for statement in module_level(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                tops = {name.split(".")[0] for name in imported_names(statement)}
                assert not tops & HEAVY, f"{path}:{statement.lineno}"


@pytest.mark.parametrize(
    "module",
    ["infinito.cli.main", "infinito.config.loading", "infinito.errors", "infinito.search.study"],
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"


def test_the_reader_of_imports_sees_what_it_should() -> None:
    source = (
        "import torch\nfrom infinito.train.trainer import Trainer\n"
        "from infinito import cli\n"
        "def f():\n    import numpy.linalg\n"
        "if TYPE_CHECKING:\n    import datasets\n"
        "try:\n    import tokenizers\nexcept ImportError:\n    pass\n"
    )
    tree = ast.parse(source)
    assert set(imported_names(tree)) >= {"torch", "numpy.linalg", "datasets", "infinito.cli"}
    level = {
        name
        for statement in module_level(tree)
        if isinstance(statement, ast.Import)
        for name in imported_names(statement)
    }
    assert level == {"torch", "tokenizers"}
    assert part_of("infinito.train.trainer.Trainer") == "train"
    assert part_of("infinito.cli") == "cli"
    assert part_of("infinito.load_config") == "__init__"
    assert part_of("torch.nn") is None
