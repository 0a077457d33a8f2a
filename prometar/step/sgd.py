"""SGD on leaves as a function, and the learning-rate schedule."""

import math

import torch
from torch import Tensor

from prometar.methods.prompts import Leaves


def sgd(
    leaves: Leaves,
    momenta: Leaves,
    gradient: Leaves,
    *,
    lr: float | Tensor,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> tuple[Leaves, Leaves]:
    """v <- momentum v + (g + weight_decay theta); theta <- theta - lr v. Returns new (leaves, momenta).

    With v = 0 at first this is torch.optim.SGD (dampening 0, no Nesterov). `gradient` is emptied, so that its
    memory can be used again.
    """
    if not leaves:
        return {}, {}
    old = [leaf.detach() for leaf in leaves.values()]
    # Autograd may hand out transposed layouts. A state has one layout, else a resumed run, whose state
    # comes from a file, would sum in another order than one that never stopped.
    velocities = [gradient.pop(name).detach().contiguous() for name in leaves]
    velocities = _plus(velocities, momentum, [momenta[name] for name in leaves])
    velocities = _plus(velocities, weight_decay, old)
    new = _plus(old, -lr, velocities)
    return dict(zip(leaves, new, strict=True)), dict(zip(leaves, velocities, strict=True))


def _plus(a: list[Tensor], factor: float | Tensor, b: list[Tensor]) -> list[Tensor]:
    """a + factor * b, all of them in one kernel."""
    if isinstance(factor, Tensor):  # kernels of many tensors know no configurations side by side
        return [torch.addcmul(x, factor, y) for x, y in zip(a, b, strict=True)]
    return list(torch._foreach_add(a, b, alpha=factor))


def warmup_cosine(epoch: int, *, epochs: int, lr: float, warmup_lr: float, warmup_epochs: int) -> float:
    """Rate of a 0-based epoch: constant at first, then lr (1 + cos(pi (epoch - warmup) / epochs)) / 2.

    The cosine is as long as the whole run and starts after the warm-up, so that it never reaches zero: the
    field's scheduler (Dassl's ConstantWarmupScheduler), whose published figures it is part of.
    """
    if epoch < warmup_epochs:
        return warmup_lr
    return lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs)) / 2
