"""Muon for the hidden matrices, AdamW for the rest, one schedule by the clock."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

#: Modules whose matrices are tables or output layers rather than maps between hidden states.
_TABLES = (nn.Embedding,)


class Optimizer:
    """Optimizer whose learning rate follows the share of the stage that is over.

    Args:
        modules: What is trained.
        plain: Modules that are trained as well, by AdamW throughout; output layers belong here.
        rate: Peak learning rate, for both methods (Muon's update is scaled to AdamW's).
        muon: Whether hidden matrices are updated by Muon.
        weight_decay: Decoupled decay of matrices.
        floor: Share of the peak that is left at the end.
        warmup: Updates until the peak.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        rate: float,
        *,
        plain: Iterable[nn.Module] = (),
        muon: bool = True,
        weight_decay: float = 0.02,
        floor: float = 0.0,
        warmup: int = 100,
    ) -> None:
        matrices, decayed, rest = _groups(modules, plain, muon)
        self._methods: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [
                    {"params": decayed, "weight_decay": weight_decay},
                    {"params": rest, "weight_decay": 0.0},
                ],
                lr=rate,
                betas=(0.9, 0.98),
                fused=True,
            )
        ]
        if matrices:
            self._methods.append(
                torch.optim.Muon(
                    matrices,
                    lr=rate,
                    weight_decay=weight_decay,
                    momentum=0.95,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        self.parameters = [*matrices, *decayed, *rest]
        self._rate, self._floor, self._warmup = rate, floor, warmup
        self.updates = 0

    def step(self, over: float) -> float:
        """Clips, updates and clears the gradients; `over` is the share of the stage, 0 to 1.

        Returns:
            The norm of the gradient.
        """
        decay = self._floor + (1 - self._floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, over)))
        rate = self._rate * decay * min(1.0, (self.updates + 1) / self._warmup)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, 1.0))
        for method in self._methods:
            for group in method.param_groups:
                group["lr"] = rate
            method.step()
            method.zero_grad(set_to_none=True)
        self.updates += 1
        return norm

    def state_dict(self) -> dict:
        """Everything needed to go on."""
        return {"updates": self.updates, "methods": [m.state_dict() for m in self._methods]}

    def load_state_dict(self, state: dict) -> None:
        """Take up where `state_dict` left off."""
        self.updates = state["updates"]
        for method, saved in zip(self._methods, state["methods"], strict=True):
            method.load_state_dict(saved)


def _groups(
    modules: Iterable[nn.Module], plain: Iterable[nn.Module], muon: bool
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Hidden matrices for Muon, other parameters with decay, parameters without."""
    matrices, decayed, rest, seen = [], [], [], set()
    for root, orthogonal in [*((m, False) for m in plain), *((m, muon) for m in modules)]:
        for module in root.modules():
            for parameter in module.parameters(recurse=False):
                if id(parameter) in seen or not parameter.requires_grad:
                    continue
                seen.add(id(parameter))
                if parameter.ndim < 2 or isinstance(module, _TABLES):
                    rest.append(parameter)
                elif orthogonal and parameter.ndim == 2 and isinstance(module, nn.Linear):
                    matrices.append(parameter)
                else:
                    decayed.append(parameter)
    return matrices, decayed, rest
