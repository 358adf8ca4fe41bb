"""Position information: rotary tables and ALiBi slopes."""

from __future__ import annotations

import torch
from torch import Tensor


class RotaryTable:
    """cos and sin of RoPE (Su et al. 2021, eq. 34), float32, grown on demand.

    Not a buffer: it is a pure function of its arguments and never belongs in a checkpoint.
    """

    def __init__(self, d_head: int, base: float) -> None:
        self.d_head = d_head
        self.base = base
        self.cos = torch.empty(0)
        self.sin = torch.empty(0)

    def rows(self, start: int, end: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin, each (end - start, D), of positions start to end - 1."""
        if len(self.cos) < end or self.cos.device != device:
            self._grow(max(end, 2 * len(self.cos)), device)
        return self.cos[start:end], self.sin[start:end]

    @torch.inference_mode(False)
    def _grow(self, length: int, device: torch.device) -> None:
        # Not in inference mode, which generation sets: training could not use such tables after it.
        exponents = torch.arange(0, self.d_head, 2, dtype=torch.float64) / self.d_head
        angles = torch.outer(torch.arange(length, dtype=torch.float64), self.base**-exponents)
        # The halves of a head turn against each other, so each angle stands twice; the sign of
        # the first half's sine is folded in here rather than negated at every step.
        self.cos = torch.cat([angles.cos(), angles.cos()], dim=1).float().to(device)
        self.sin = torch.cat([-angles.sin(), angles.sin()], dim=1).float().to(device)


def alibi_slopes(n_heads: int) -> Tensor:
    """Slopes (H,) of ALiBi (Press et al. 2022): a geometric series that ends at 2**-8."""
    slopes = [2.0 ** (-8.0 * (head + 1) / n_heads) for head in range(n_heads)]
    return torch.tensor(slopes, device="cpu")  # numbers also where a model is made without any
