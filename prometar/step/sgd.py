"""Functional SGD, and the learning-rate schedule."""

import math

import torch

from prometar.methods.prompts import Leaves, Tensors


def sgd(
    leaves: Leaves, momenta: Tensors, gradient: Tensors, *, lr: float, momentum: float, weight_decay: float
) -> tuple[Leaves, Tensors]:
    """Return new (leaves, momenta): m <- momentum * m + g + weight_decay * theta, theta <- theta - lr * m.

    theta: `leaves`. m: `momenta`. g: `gradient`, which is emptied. Equals torch.optim.SGD if m starts at 0.
    """
    if not leaves:
        return {}, {}
    old = [leaf.detach() for leaf in leaves.values()]
    # Autograd may return transposed gradients, but momenta from a checkpoint are contiguous. Contiguous
    # gradients give all momenta one layout, so later reductions add in the same order in resumed runs.
    gradients = [gradient.pop(name).detach().contiguous() for name in leaves]
    new_momenta = list(torch._foreach_add(gradients, [momenta[name] for name in leaves], alpha=momentum))
    new_momenta = list(torch._foreach_add(new_momenta, old, alpha=weight_decay))
    new_leaves = list(torch._foreach_add(old, new_momenta, alpha=-lr))
    return dict(zip(leaves, new_leaves, strict=True)), dict(zip(leaves, new_momenta, strict=True))


def warmup_cosine(epoch: int, *, epochs: int, lr: float, warmup_lr: float, warmup_epochs: int) -> float:
    """Return the lr of a 0-based epoch: `warmup_lr`, then lr / 2 * (1 + cos(pi * cosine_epoch / epochs)).

    The cosine starts after the warm-up (cosine_epoch = epoch - warmup_epochs) but has a length of `epochs`
    epochs, so the lr never reaches zero. This is Dassl's schedule, as in the published runs.
    """
    if epoch < warmup_epochs:
        return warmup_lr
    return lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs)) / 2
