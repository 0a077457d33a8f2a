"""SGD on leaves as a function, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from prometar.methods.prompts import Leaves


def sgd(
    leaves: Mapping[str, Tensor],
    momenta: Mapping[str, Tensor],
    gradient: Leaves,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> tuple[Leaves, Leaves]:
    """v <- momentum v + (g + weight_decay theta); theta <- theta - lr v. Returns new (leaves, momenta).

    With v = 0 at first this is torch.optim.SGD (dampening 0, no Nesterov). `gradient` is emptied: the memory
    of one leaf's serves the next one's momentum.
    """
    new_leaves: Leaves = {}
    new_momenta: Leaves = {}
    for name, leaf in leaves.items():
        leaf = leaf.detach()
        # Autograd may hand out transposed layouts. A state has one layout, else a resumed run, whose state
        # comes from a file, would sum in another order than one that never stopped.
        velocity = gradient.pop(name).detach().contiguous()
        velocity = _plus(_plus(velocity, momentum, momenta[name]), weight_decay, leaf)
        new_momenta[name] = velocity
        new_leaves[name] = _plus(leaf, -lr, velocity)
    return new_leaves, new_momenta


def _plus(a: Tensor, factor: float | Tensor, b: Tensor) -> Tensor:
    """a + factor * b in one kernel."""
    if isinstance(factor, Tensor):  # each of several configurations has its own
        return torch.addcmul(a, factor, b)
    return torch.add(a, b, alpha=factor)


def warmup_cosine(epoch: int, *, epochs: int, lr: float, warmup_lr: float, warmup_epochs: int) -> float:
    """Rate of a 0-based epoch: constant at first, then lr (1 + cos(pi (epoch - warmup) / epochs)) / 2.

    The cosine is as long as the whole run and starts after the warm-up, so that it never reaches zero: the
    field's scheduler (Dassl's ConstantWarmupScheduler), whose published figures it is part of.
    """
    if epoch < warmup_epochs:
        return warmup_lr
    return lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs)) / 2
