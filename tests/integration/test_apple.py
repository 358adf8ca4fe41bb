"""An Apple GPU has no float64: a run in which that type on a device is an error.

No such device is at hand, so one is played: torch's ``meta`` tensors stand on it. They have shapes
and types but no numbers; what is copied to the host is 1 everywhere. The code sees a device that
is not the CPU, takes the ways of one, and every operation is watched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from infinito.cli.main import main
from tests.command_support import write_config

META, HOST = torch.device("meta"), torch.device("cpu")


class PlayedDevice(TorchFunctionMode):
    """Whoever names ``mps`` gets ``meta``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_played, (args, kwargs or {}))
        return func(*args, **kwargs)


def _played(value: Any) -> Any:
    named = isinstance(value, str | torch.device) and str(value).partition(":")[0] == "mps"
    return META if named else value


class NoFloat64(TorchDispatchMode):
    """An operation that reads or makes float64 on the device fails, as Apple's does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self._answer(func.overloadpacket.__name__, args, kwargs)
        if result is None:
            result = func(*args, **kwargs)
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor) and value.is_meta and value.dtype == torch.float64:
                raise TypeError(f"{func}: this device has no float64")
        return result

    def _answer(self, name: str, args: Any, kwargs: Any) -> Any:
        """What a real device would say where ``meta`` has nothing to say; None elsewhere."""
        if not (args and isinstance(args[0], Tensor) and args[0].is_meta):
            return None
        if name == "_local_scalar_dense":
            return 1.0
        if name == "equal":
            return True
        if name == "nonzero":
            return torch.empty(args[0].numel(), args[0].ndim, dtype=torch.int64, device=META)
        if name in ("_to_copy", "to") and HOST in (*args[1:2], kwargs.get("device")):
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return None


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    # meta has no autocast; in float32 there is none.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    with PlayedDevice(), NoFloat64():
        yield


@pytest.mark.usefixtures("apple")
def test_the_played_device_refuses_float64() -> None:
    with pytest.raises(TypeError, match="no float64"):
        torch.ones(2, device="mps").double()
    with pytest.raises(TypeError, match="no float64"):
        torch.zeros((), dtype=torch.float64, device="mps")
    assert torch.ones(2, device="mps").cpu().double().sum() == 2


@pytest.mark.usefixtures("apple")
@pytest.mark.parametrize(
    ("kind", "optimizer"), [("dot", "adamw"), ("l1", "muon"), ("cosine", "adamw")]
)
def test_every_command_works_without_float64(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    optimizer: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(
        tmp_path, device="auto", model__attention__kind=kind, model__dropout=0.1,
        training__optimizer=optimizer, training__ema_decay=0.9, training__max_steps=3,
    )  # fmt: skip
    commands = [
        ["train", "--config", str(config)],
        ["resume", "run", "--max-steps", "5"],
        ["evaluate", "run", "--device", "mps"],
        ["generate", "run", "--prompt", "the", "--max-new-tokens", "4", "--device", "mps"],
        ["analyze", "run", "--device", "mps", "--output-dir", "figures"],
        ["fit-lambda", "run", "--max-steps", "2", "--device", "mps"],
    ]
    if kind == "dot":
        commands.pop()  # it has no lambda
    for command in commands:
        assert main(command) == 0, capsys.readouterr().err
    assert "device mps" in capsys.readouterr().err
