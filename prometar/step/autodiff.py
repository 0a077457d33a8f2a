"""Gradients of functions of leaves: by autograd, or by torch.func where the step itself is vectorised.

autograd keeps no second-order graph where none is asked for; torch.func can be mapped over configurations
(`torch.vmap`), which autograd cannot.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from prometar.methods.prompts import Leaves

Function = Callable[[Leaves], tuple[Leaves, Leaves]]
"""Leaves to named values that are differentiated, and others that are only passed on."""


class Pull(Protocol):
    """Cotangents by value name (a value without one has zero) to gradients by leaf name.

    `last`: no other call follows, so what the graph holds may go. `connected`: the gradients can be
    differentiated with respect to the cotangents.
    """

    def __call__(self, cotangents: Leaves, *, last: bool = True, connected: bool = False) -> Leaves: ...


class Differentiate(Protocol):
    """A function's values at the leaves, what it passes on, and its pullback.

    `again`: whether the pulled-back gradients will be differentiated themselves, with respect to the leaves
    and all else that the function depends on; if not, the leaves are taken as constants of what is outside.
    """

    def __call__(
        self, function: Function, leaves: Leaves, *, again: bool = False
    ) -> tuple[Leaves, Leaves, Pull]: ...


def autograd(function: Function, leaves: Leaves, *, again: bool = False) -> tuple[Leaves, Leaves, Pull]:
    """`Differentiate` by torch.autograd."""
    if again:
        # One leaf may be a function of another outside (coupled tokens): here each is a variable of its own.
        leaves = {name: leaf.view_as(leaf) for name, leaf in leaves.items()}
    else:
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    values, passed_on = function(leaves)

    def pull(cotangents: Leaves, *, last: bool = True, connected: bool = False) -> Leaves:
        names = [name for name in cotangents if values[name].requires_grad]
        if not leaves or not names:
            return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        gradient: Sequence[Tensor] = torch.autograd.grad(
            [values[name] for name in names],
            list(leaves.values()),
            [cotangents[name] for name in names],
            create_graph=again or connected,
            retain_graph=again or connected or not last,
            allow_unused=True,
            materialize_grads=True,
        )
        return dict(zip(leaves, gradient, strict=True))

    return values, passed_on, pull


def functional(function: Function, leaves: Leaves, *, again: bool = False) -> tuple[Leaves, Leaves, Pull]:
    """`Differentiate` by torch.func.vjp."""
    if not again:
        leaves = {name: leaf.detach() for name, leaf in leaves.items()}
    values, pullback, passed_on = torch.func.vjp(function, leaves, has_aux=True)  # type: ignore[misc]

    def pull(cotangents: Leaves, *, last: bool = True, connected: bool = False) -> Leaves:
        whole = {name: cotangents.get(name, torch.zeros_like(value)) for name, value in values.items()}
        (gradient,) = pullback(whole)
        return gradient

    return values, passed_on, pull
