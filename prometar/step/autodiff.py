"""Vector-Jacobian products of small functions of leaves, by torch.autograd."""

from collections.abc import Callable

import torch
from torch import Tensor

from prometar.methods.prompts import Leaves

Vjp = Callable[[Leaves], Leaves]
"""Cotangents by value name (a value without one has zero) to gradients by leaf name."""


def vjp(
    function: Callable[[Leaves], tuple[Leaves, Leaves]], leaves: Leaves, *, differentiable: bool = False
) -> tuple[Leaves, Leaves, Vjp]:
    """Return the values, the auxiliary values and the vector-Jacobian product of a function at `leaves`.

    Auxiliary values are not differentiated.
    Outside of the function the leaves are constants, and its gradients cannot be differentiated. If
    `differentiable`, they can: gradients depend on the leaves, on the cotangents, and on everything else that
    the function depends on.
    """
    if differentiable:
        # A leaf may be a function of another leaf (coupled tokens). Views make each an independent variable.
        leaves = {name: leaf.view_as(leaf) for name, leaf in leaves.items()}
    else:
        leaves = detached(leaves)
    values, auxiliary = function(leaves)

    def gradient(cotangents: Leaves) -> Leaves:
        names = [name for name in cotangents if values[name].requires_grad]
        if not leaves or not names:
            return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        pulled: tuple[Tensor, ...] = torch.autograd.grad(
            [values[name] for name in names],
            list(leaves.values()),
            [cotangents[name] for name in names],
            create_graph=differentiable,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return dict(zip(leaves, pulled, strict=True))

    return values, auxiliary, gradient


def detached(leaves: Leaves) -> Leaves:
    """Return the leaves as variables without a history."""
    return {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
