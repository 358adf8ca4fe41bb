"""``training.fusion: aggressive``: compile the blocks, prove it on a real step, or say why not."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from infinito.model.experts import mixtures
from infinito.model.language_model import LanguageModel
from infinito.runtime.events import note


def compile_blocks(model: LanguageModel, probe: Callable[[], object]) -> bool:
    """Compile each block in place and run ``probe``; fall back to eager, announced, if it fails.

    Compilation errors appear at the first step and not at ``torch.compile``, so only a probe can
    tell. Compiling in place keeps the parameters' names. Experts stay eager: the rows each gets
    are of another number in every step, and what is compiled for one serves no other.
    """
    start = time.monotonic()
    for mixture in mixtures(model):
        mixture.forward = torch.compiler.disable(mixture.forward)  # type: ignore[method-assign]
    for block in model.blocks:
        block.compile()
    try:
        probe()
    except Exception as error:
        for block in model.blocks:
            block._compiled_call_impl = None
        torch._dynamo.reset()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        note(f"fusion: eager, because compiling failed ({reason[:160]})")
        return False
    note(f"fusion: blocks compiled in {time.monotonic() - start:.1f} s")
    return True
