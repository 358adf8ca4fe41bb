"""Muon whose passes over single numbers run by a plan; its matrix products are torch's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from infinito.kernels.fusion import Plan


class PlannedMuon(torch.optim.Muon):
    """The step of its base class (Jordan et al. 2024), with Nesterov's momentum."""

    def __init__(self, parameters: Iterable[nn.Parameter], plan: Plan, **options: Any) -> None:
        """``options`` as its base class takes them; every state must hold its momentum."""
        super().__init__(parameters, **options)
        self._plan = plan

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; there is no closure."""
        assert closure is None
        for group in self.param_groups:
            keep = 1.0 - group["lr"] * group["weight_decay"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                buffer = self.state[parameter]["momentum_buffer"]
                update = self._plan.run("momentum", buffer, parameter.grad, group["momentum"])
                direction = _zeropower_via_newtonschulz(
                    update, group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                rate = _adjust_lr(group["lr"], group["adjust_lr_fn"], parameter.shape)
                self._plan.run("move", parameter.data, direction, keep, rate)
