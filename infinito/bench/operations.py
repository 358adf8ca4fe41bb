"""Every operation that exists in several variants."""

from __future__ import annotations

from typing import Any

from infinito.attention import ATTENTION
from infinito.kernels.fusion import OPERATIONS as FUSED
from infinito.kernels.table import Operation
from infinito.model.decode import DECODE

OPERATIONS: tuple[Operation[Any], ...] = (ATTENTION, DECODE, *FUSED.values())
