"""Device and precision: what is chosen, why, and what is refused."""

from __future__ import annotations

import pytest
import torch

from infinito.errors import ConfigError, ResourceError
from infinito.runtime import device, precision
from infinito.runtime.device import available_devices, choose_device
from infinito.runtime.precision import autocast, choose_precision


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Model Z")


@pytest.mark.usefixtures("no_accelerator")
def test_a_machine_without_accelerator() -> None:
    assert available_devices() == ["cpu"]
    assert choose_device("cpu").value == "cpu"
    automatic = choose_device("auto")
    assert automatic.value == "cpu"
    assert automatic.reason.startswith("auto: ")
    for requested in ("cuda", "cuda:1", "mps"):
        with pytest.raises(ResourceError, match=f"device {requested} is not there") as caught:
            choose_device(requested)
        assert "this machine has: cpu" in caught.value.remedy


@pytest.mark.usefixtures("two_cuda_devices")
def test_a_machine_with_cuda() -> None:
    assert available_devices()[:2] == ["cuda:0", "cuda:1"]
    assert choose_device("auto").value == "cuda"
    assert "Model Z" in choose_device("auto").reason
    assert choose_device("cuda:1").value == "cuda:1"
    assert choose_device("cpu").value == "cpu"
    with pytest.raises(ResourceError, match="device cuda:2 is not there"):
        choose_device("cuda:2")


def test_automatic_precision_on_a_cpu_is_float32_with_a_reason() -> None:
    choice = choose_precision("auto", "cpu")
    assert choice.value == "float32"
    assert "cpu" in choice.reason


@pytest.mark.parametrize(("obstacle", "value"), [("", "bfloat16"), ("too old", "float32")])
def test_automatic_precision_on_cuda_goes_by_capability(
    monkeypatch: pytest.MonkeyPatch, obstacle: str, value: str
) -> None:
    monkeypatch.setattr(precision, "unsupported_reason", lambda *_: obstacle)
    choice = choose_precision("auto", "cuda")
    assert choice.value == value
    assert obstacle in choice.reason


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_explicit_precisions_compute_in_their_type_on_a_cpu(name: str, dtype: torch.dtype) -> None:
    assert choose_precision(name, "cpu").value == name
    with autocast(name, "cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == dtype


def test_a_precision_that_torch_switches_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(precision, "autocast", lambda *_: nullcontext())
    with pytest.raises(ConfigError, match=r"training\.precision = float16: torch has no float16"):
        choose_precision("float16", "cpu")


def test_the_interface_of_the_brief() -> None:
    assert device.Choice is precision.Choice
