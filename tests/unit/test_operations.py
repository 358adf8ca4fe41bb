"""The table of operations: choices and their reasons, the compiled library, what doctor says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infinito.attention import Request
from infinito.attention import cpu as cpu_kernel
from infinito.bench.operations import OPERATIONS
from infinito.cli.main import main
from infinito.errors import ConfigError, ResourceError
from infinito.kernels import native
from infinito.kernels.fusion import StepShape
from infinito.kernels.table import Operation, Variant, no_objection
from infinito.model import decode
from tests.decode_support import build

TOY: Operation[int] = Operation(
    "halving",
    {
        "even": Variant(lambda: "a shift", lambda n: f"{n} is odd" if n % 2 else None, lambda n: n),
        "plain": Variant(lambda: "a division", no_objection, lambda n: n),
    },
    lambda device: 2,
)
HARD_REQUESTS: dict[str, list[Any]] = {
    "attention": [
        Request("l1", "meta", torch.float64, width=1000, dropout=True, alibi=True),
        Request("cosine", "mps", torch.float16, queries=3, keys=9, causal=False),
    ],
    "decode step": [build(d_model=32).train(), build(d_model=32).double()],
}


def hard_requests(operation: Operation[Any]) -> list[Any]:
    fused = StepShape("meta", torch.float64, batch=1, length=1, width=1, hidden=3)
    return HARD_REQUESTS.get(operation.name, [fused])


def test_auto_takes_the_first_that_can_and_says_why_not_the_others() -> None:
    assert TOY.choose(4).value == "even"
    assert TOY.choose(4).reason == "a shift"
    assert TOY.choose(3).value == "plain"
    assert TOY.choose(3).reason == "a division; not even: 3 is odd"
    assert TOY.choose(4, "plain").reason == "a division; as asked for"
    assert TOY.available(3)["even"] == "3 is odd"
    with pytest.raises(ConfigError, match="'even' cannot serve this: 3 is odd"):
        TOY.select(3, "even")
    with pytest.raises(ConfigError, match="unknown halving backend 'odd'"):
        TOY.select(3, "odd")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_last_variant_serves_everything_and_objections_are_said(
    operation: Operation[Any],
) -> None:
    plain = list(operation.variants)[-1]
    for request in (operation.sample("cpu"), *hard_requests(operation)):
        answers = operation.available(request)
        assert not isinstance(answers[plain], str)
        assert all(isinstance(a, str) and a for n, a in answers.items() if n not in served(answers))
        assert operation.select(request) == served(answers)[0]


def served(answers: dict[str, Any]) -> list[str]:
    return [name for name, answer in answers.items() if not isinstance(answer, str)]


def kernel_findings(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    names = tuple(f"{operation.name} " for operation in OPERATIONS)
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    return {f["name"]: f for f in findings if f["name"].startswith(names)}


def test_doctor_names_every_variant(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = kernel_findings(capsys)
    assert list(found) == [f"{o.name} {name}" for o in OPERATIONS for name in o.variants]
    monkeypatch.setattr(cpu_kernel, "missing", "nobody built it")
    monkeypatch.setattr(decode._kernel, "missing", "nobody built it")
    found = kernel_findings(capsys)
    for name in ("attention cpu", "decode step cpu"):
        assert (found[name]["value"], found[name]["reason"]) == ("no", "nobody built it")
        assert "C compiler" in found[name]["remedy"]
    assert found["attention chunked"]["value"] == found["decode step torch"]["value"] == "yes"


def test_a_library_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    assert "no C compiler was there" in str(native.load(tmp_path / "absent.so"))
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    assert "does not load" in str(native.load(broken))


@pytest.mark.skipif(not native.available_isas(), reason="no compiled library")
def test_arguments_of_another_version_are_never_passed() -> None:
    for structure, version in ((decode._Decode, 999), (decode._Layer, decode._VERSION)):
        stale = native.Native("decode step", structure, version)
        assert "another version" in str(stale.missing)
        with pytest.raises(ResourceError, match="another version"):
            stale(decode._Norm())
