"""Activations by name. An elementwise region is an activation when it agrees with one at probe points.

Names are for the report and for comparing blocks; the rewrite copies the region itself, so a region that no
name fits is fused all the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "GATE_PROBES", "UP_PROBES", "name_of", "role_of"]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "mish": F.mish,
    "softplus": F.softplus,
    "hardswish": F.hardswish,
    "elu": F.elu,
    "selu": F.selu,
    "leaky_relu": F.leaky_relu,
    "identity": lambda x: x,
}

# Close together around 0, where thresholds are small, and far out, where a clamp may begin.
_FAR = torch.tensor([0.003, 0.02, 7.3, 9.1, 11.0, 16.0, 24.0, 35.0, 60.0, 100.0], dtype=torch.float64)
GATE_PROBES = torch.cat(
    [torch.linspace(-6.0, 6.0, 25), torch.linspace(-1.02, 1.04, 24), _FAR, -_FAR]
).double()  # fmt: skip
UP_PROBES = torch.linspace(1.5, -2.5, len(GATE_PROBES), dtype=torch.float64).roll(7)
# Constants such as sqrt(2 / pi) may have been rounded to half precision by an exporter.
_TOLERANCE = 5e-3


def name_of(values: torch.Tensor) -> str:
    """The activation nearest to `values` at `GATE_PROBES`; "elementwise" when none is near."""
    size = GATE_PROBES.abs().clamp(min=1.0)
    errors = {
        name: float(((function(GATE_PROBES) - values) / size).abs().max())
        for name, function in ACTIVATIONS.items()
    }
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] <= _TOLERANCE else "elementwise"


def role_of(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> int | None:
    """Which argument of a two-argument region is the up projection (it enters linearly); None if neither."""
    for index in (1, 0):
        arguments = [GATE_PROBES, UP_PROBES]
        if index == 0:
            arguments.reverse()
        scaled = list(arguments)
        scaled[index] = -3.0 * arguments[index]
        if torch.allclose(function(*scaled), -3.0 * function(*arguments), rtol=1e-9, atol=1e-9):
            return index
    return None
