"""infinito: train, resume, evaluate and generate with small language models.

The names below are the Python API; they are imported on first use, so that ``import infinito``
and ``infinito --help`` stay free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from infinito.runtime.cores import wait_briefly
from infinito.version import __version__

wait_briefly()  # before anything imports torch

if TYPE_CHECKING:
    from infinito.analyze.collect import analyze_attention
    from infinito.config.loading import load_config
    from infinito.load import LoadedModel, load_model, open_checkpoint
    from infinito.train.callbacks import standard_callbacks
    from infinito.train.run import run
    from infinito.train.trainer import Trainer

_HOMES = {
    "Trainer": "infinito.train.trainer",
    "LoadedModel": "infinito.load",
    "load_model": "infinito.load",
    "open_checkpoint": "infinito.load",
    "run": "infinito.train.run",
    "standard_callbacks": "infinito.train.callbacks",
    "load_config": "infinito.config.loading",
    "analyze_attention": "infinito.analyze.collect",
}

__all__ = [
    "LoadedModel",
    "Trainer",
    "__version__",
    "analyze_attention",
    "load_config",
    "load_model",
    "open_checkpoint",
    "run",
    "standard_callbacks",
]


def __getattr__(name: str) -> Any:
    """Import an API name where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module 'infinito' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
