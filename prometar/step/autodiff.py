"""Vector-Jacobian products of functions of tensor dictionaries, computed by torch.autograd."""

from collections.abc import Callable

import torch
from torch import Tensor

from prometar.methods.prompts import Tensors

Vjp = Callable[[Tensors], Tensors]
"""Map from cotangents of values to gradients of leaves, both by name. Missing cotangents count as zero."""


def vjp(
    function: Callable[[Tensors], tuple[Tensors, Tensors]], leaves: Tensors, *, differentiable: bool = False
) -> tuple[Tensors, Tensors, Vjp]:
    """Return the values of a function at `leaves`, its auxiliary values, and its vector-Jacobian product.

    Auxiliary values are not differentiated. If `differentiable`, the gradients can be differentiated with
    respect to leaves, cotangents and tensors that the function captures. Otherwise, leaves are detached.
    """
    if differentiable:
        # With views, tensors that are captured and depend on the leaves do not contribute to gradients.
        leaves = {name: leaf.view_as(leaf) for name, leaf in leaves.items()}
    else:
        leaves = fresh_leaves(leaves)
    values, auxiliary = function(leaves)

    def pull_back(cotangents: Tensors) -> Tensors:
        names = [name for name in cotangents if values[name].requires_grad]
        if not leaves or not names:
            return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        gradients: tuple[Tensor, ...] = torch.autograd.grad(
            [values[name] for name in names],
            list(leaves.values()),
            [cotangents[name] for name in names],
            create_graph=differentiable,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return dict(zip(leaves, gradients, strict=True))

    return values, auxiliary, pull_back


def fresh_leaves(leaves: Tensors) -> Tensors:
    """Return detached leaves that share the storage of the given ones and require gradients."""
    return {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
