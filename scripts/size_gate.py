"""Holds the package to the size that was decided: prints code lines by room, fails beyond a budget.

    python scripts/size_gate.py

Counted are lines of code: no docstrings, comments or blank lines. The budgets stand in
``scripts/size_budget.json`` and are raised by decision only, in a commit that says why. Also
held: files of at most 400 lines, functions of at most 40 lines of code, no file name and no
public class name twice, and no circle of imports between the files of a room.
"""

from __future__ import annotations

import ast
import io
import json
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "infinito"
BUDGET = Path(__file__).with_name("size_budget.json")
FILE_LINES, FUNCTION_LINES = 400, 40
_PASSED_OVER = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip
_WITH_BODY = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(text: str, tree: ast.Module) -> set[int]:
    """Numbers of the lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _PASSED_OVER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, _WITH_BODY) and ast.get_docstring(node, clean=False) is not None:
            statement = node.body[0]
            lines -= set(range(statement.lineno, (statement.end_lineno or 0) + 1))
    return lines


def room_of(path: Path) -> str:
    """The folder below the package, or the file's own name at its top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def long_functions(tree: ast.Module, lines: set[int]) -> Iterator[str]:
    """Functions with more code lines than allowed, their signatures not counted.

    A Triton kernel is passed over: a launch is one function, and its accumulators are its locals.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list):
                continue
            span = set(range(node.body[0].lineno, (node.end_lineno or 0) + 1)) & lines
            if len(span) > FUNCTION_LINES:
                yield f"{node.name} ({len(span)})"


def circles(trees: dict[Path, ast.Module]) -> Iterator[str]:
    """A circle of imports, at whatever depth of the code, in each room that has one."""
    module = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in trees}
    graphs: dict[str, dict[Path, set[Path]]] = {}
    for path, tree in trees.items():
        targets = {
            module[name]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
            if name in module and room_of(module[name]) == room_of(path)
        }
        graphs.setdefault(room_of(path), {})[path] = targets
    for room, graph in graphs.items():
        try:
            list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            yield f"{room}: {' -> '.join(path.name for path in error.args[1])}"


def faults(trees: dict[Path, ast.Module], texts: dict[Path, str]) -> Iterator[str]:
    """Everything but the budgets."""
    names = Counter(path.name for path in trees if path.name not in ("__init__.py", "__main__.py"))
    yield from (f"file name {name} stands {n} times" for name, n in names.items() if n > 1)
    classes = Counter(
        node.name
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    yield from (f"class {name} stands {n} times" for name, n in classes.items() if n > 1)
    yield from (f"circle of imports in {circle}" for circle in circles(trees))
    for path, tree in trees.items():
        length = texts[path].count("\n")
        if length > FILE_LINES:
            yield f"{path.relative_to(ROOT)} has {length} lines, more than {FILE_LINES}"
        for function in long_functions(tree, code_lines(texts[path], tree)):
            yield f"{path.relative_to(ROOT)}: {function} has more than {FUNCTION_LINES} lines"


def main() -> int:
    """Print the table and the faults; 1 if there are any."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    budget: dict[str, int] = json.loads(BUDGET.read_text(encoding="utf-8"))
    rooms: Counter[str] = Counter()
    for path, text in texts.items():
        rooms[room_of(path)] += len(code_lines(text, trees[path]))
    found = list(faults(trees, texts))
    for room, lines in sorted(rooms.items(), key=lambda item: -item[1]):
        print(f"{room:12} {lines:6} of {budget.get(room, 0):6}")
        if lines > budget.get(room, 0):
            found.append(f"{room}/ has {lines} code lines, more than its budget")
    total = sum(rooms.values())
    print(f"{'in all':12} {total:6} of {budget['in all']:6}")
    if total > budget["in all"]:
        found.append(f"the package has {total} code lines, more than its budget")
    for fault in found:
        print(f"size gate: {fault}", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
