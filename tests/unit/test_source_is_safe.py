"""Row S-10: nothing in the source can run what a file holds, and the pins exclude known holes."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator

import pytest

from tests.support import ROOT

FORBIDDEN_CALLS = {
    "eval", "exec", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads",
    "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "dill.load", "joblib.load",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load",
    "numpy.load", "np.load", "torch.jit.load", "torch.serialization.add_safe_globals",
}  # fmt: skip
SOURCES = [
    path
    for folder in ("infinito", "scripts", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def complaints(tree: ast.AST) -> Iterator[str]:
    """What a file does that no file may: forbidden calls and forbidden keyword values."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in FORBIDDEN_CALLS:
            yield f"line {node.lineno}: {name}"
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield f"line {node.lineno}: torch.load without weights_only=True"
        if keywords.get("shell", "False") != "False":
            yield f"line {node.lineno}: shell={keywords['shell']}"
        if keywords.get("trust_remote_code", "False") != "False":
            yield f"line {node.lineno}: trust_remote_code"
        if keywords.get("allow_pickle", "False") != "False":
            yield f"line {node.lineno}: allow_pickle"


@pytest.mark.row("S-10")
def test_the_source_never_runs_what_a_file_holds() -> None:
    assert len(SOURCES) > 80
    found = {
        str(path.relative_to(ROOT)): list(complaints(ast.parse(path.read_text(encoding="utf-8"))))
        for path in SOURCES
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.row("S-10")
@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "pickle.loads(data)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "eval(text)",
        "subprocess.run(line, shell=True)",
        "load_dataset(name, trust_remote_code=True)",
        "np.load(path)",
    ],
)
def test_each_of_these_would_be_noticed(line: str) -> None:
    assert list(complaints(ast.parse(line)))


@pytest.mark.row("S-10")
def test_versions_with_known_holes_are_excluded() -> None:
    """torch before 2.10: CVE-2025-32434, CVE-2026-24747; datasets before 4 ran scripts."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(
        re.fullmatch(r"([a-z]+)>=([0-9]+(?:\.[0-9]+)*).*", line).groups()  # type: ignore[union-attr]
        for line in project["dependencies"]
    )
    assert tuple(map(int, pins["torch"].split("."))) >= (2, 10)
    assert int(pins["datasets"].split(".")[0]) >= 4


def test_an_sdist_has_every_folder_that_its_tests_open() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    opened = {name for name in re.findall(r'ROOT / "(\w+)"', tests) if (ROOT / name).is_dir()}
    rules = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    assert opened - {"infinito"} <= set(re.findall(r"^recursive-include (\w+) ", rules, re.M))
