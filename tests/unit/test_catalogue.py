"""The reliability catalogue is complete: no unknown row, no row without a test or a reason."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.catalogue import ROWS, WAITING, summarise
from tests.support import ROOT


def _is_row_marker(node: ast.AST) -> bool:
    """``pytest.mark.row(...)``, wherever it stands: decorator, list of marks, parameter."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "row"
        and isinstance(node.func.value, ast.Attribute)
        and node.func.value.attr == "mark"
    )


def _marked(path: Path) -> list[str]:
    """The rows a test file names; anything but a plain string is refused."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if _is_row_marker(node):
            assert isinstance(node, ast.Call)
            assert node.args, f"{path.name}:{node.lineno}: a marker without a row"
            found += [ast.literal_eval(argument) for argument in node.args]
    return found


def _marks_of_all_tests() -> dict[str, list[str]]:
    paths = sorted((ROOT / "tests").glob("**/test_*.py"))
    assert len(paths) > 20
    return {str(path.relative_to(ROOT)): _marked(path) for path in paths}


def test_every_marked_row_exists() -> None:
    for name, rows in _marks_of_all_tests().items():
        assert set(rows) <= set(ROWS), f"{name} names rows that do not exist"


def test_every_row_has_a_test_or_a_reason() -> None:
    held = {row for rows in _marks_of_all_tests().values() for row in rows}
    assert set(ROWS) - held == set(WAITING), "held and waiting must be all rows, and not overlap"


def test_the_catalogue_is_whole() -> None:
    sizes = {"R": 14, "X": 7, "C": 23, "S": 11, "K": 9, "D": 6, "E": 2, "G": 11, "O": 1}
    expected = [f"{group}-{n:02d}" for group, size in sizes.items() for n in range(1, size + 1)]
    assert list(ROWS) == expected
    assert len(set(ROWS.values())) == len(ROWS)


def test_a_row_passes_only_if_something_passed_and_nothing_failed() -> None:
    outcomes = [("R-01", "passed"), ("R-02", "passed"), ("R-02", "failed"), ("R-03", "skipped")]
    lines, passing = summarise(outcomes)
    assert passing == 1
    assert lines[-1] == f"rows passing: 1 of {len(ROWS)}"
    assert [line.split()[1:4] for line in lines[1:4]] == [list("100"), list("110"), list("001")]
