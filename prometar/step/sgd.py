"""SGD on leaves as a function, and the learning-rate schedule."""

import math

import torch

from prometar.methods.prompts import Leaves


def sgd(
    leaves: Leaves,
    momenta: Leaves,
    gradient: Leaves,
    *,
    lr: float,
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
    velocities = list(torch._foreach_add(velocities, [momenta[name] for name in leaves], alpha=momentum))
    velocities = list(torch._foreach_add(velocities, old, alpha=weight_decay))
    new = list(torch._foreach_add(old, velocities, alpha=-lr))
    return dict(zip(leaves, new, strict=True)), dict(zip(leaves, velocities, strict=True))


def warmup_cosine(epoch: int, *, epochs: int, lr: float, warmup_lr: float, warmup_epochs: int) -> float:
    """Rate of a 0-based epoch: constant at first, then lr (1 + cos(pi (epoch - warmup) / epochs)) / 2.

    The cosine is as long as the whole run and starts after the warm-up, so that it never reaches zero: the
    field's scheduler (Dassl's ConstantWarmupScheduler), whose published figures it is part of.
    """
    if epoch < warmup_epochs:
        return warmup_lr
    return lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs)) / 2
