"""Functional SGD, and the learning-rate schedule."""

import math

import torch

from prometar.methods.prompts import Leaves


def sgd(
    leaves: Leaves, momenta: Leaves, gradient: Leaves, *, lr: float, momentum: float, weight_decay: float
) -> tuple[Leaves, Leaves]:
    """Return new (leaves, momenta): v <- momentum v + (g + weight_decay theta); theta <- theta - lr v.

    If v starts at 0, the updates equal those of torch.optim.SGD (dampening 0, no Nesterov). `gradient` is
    emptied to release its memory early.
    """
    if not leaves:
        return {}, {}
    old = [leaf.detach() for leaf in leaves.values()]
    # Autograd may return transposed layouts. Contiguous momenta give a resumed run, whose state is loaded
    # from a file, the same summation order as an uninterrupted run.
    velocities = [gradient.pop(name).detach().contiguous() for name in leaves]
    velocities = list(torch._foreach_add(velocities, [momenta[name] for name in leaves], alpha=momentum))
    velocities = list(torch._foreach_add(velocities, old, alpha=weight_decay))
    new = list(torch._foreach_add(old, velocities, alpha=-lr))
    return dict(zip(leaves, new, strict=True)), dict(zip(leaves, velocities, strict=True))


def warmup_cosine(epoch: int, *, epochs: int, lr: float, warmup_lr: float, warmup_epochs: int) -> float:
    """Return the lr of a 0-based epoch: `warmup_lr`, then lr (1 + cos(pi (epoch - warmup) / epochs)) / 2.

    The cosine spans all epochs but starts after the warm-up, so it never reaches zero. Published accuracies
    were measured with this schedule (ConstantWarmupScheduler of Dassl).
    """
    if epoch < warmup_epochs:
        return warmup_lr
    return lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs)) / 2
