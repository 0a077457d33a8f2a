"""How leaves start."""

from __future__ import annotations

import torch
from torch import Tensor


def linear(shape: tuple[int, ...], num_in: int, *, like: Tensor, generator: torch.Generator) -> Tensor:
    """U(-1/sqrt(num_in), 1/sqrt(num_in)), the default of torch.nn.Linear for its weight and its bias.

    Drawn in float64 on the CPU: the same start whatever the precision and the device, which are those of
    `like`.
    """
    draw = torch.rand(*shape, dtype=torch.float64, generator=generator) * 2 - 1
    return (draw * num_in**-0.5).to(dtype=like.dtype, device=like.device)
