"""Derivatives of functions of tensor dictionaries, computed by torch.autograd."""

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


class AutodiffPass:
    """Values of a function of tensors, and its derivatives, computed by torch.autograd.

    Has the methods of `prometar.clip.tower.Pass`. Inputs and values are dictionaries. J: Jacobian of the
    values with respect to the inputs. Cotangents and tangents have a leading dimension of size K.

    Args:
        function: The function. For `jvp` and `hvp`, autograd must be able to differentiate it twice.
        inputs: The point at which it is evaluated. Other tensors are constants.
    """

    def __init__(self, function: Callable[[Tensors], Tensors], inputs: Tensors) -> None:
        self._inputs = fresh_leaves(inputs)
        with torch.enable_grad():
            self._values = function(self._inputs)

    @property
    def values(self) -> Tensors:
        return {name: value.detach() for name, value in self._values.items()}

    def vjp(self, cotangents: Tensors, *, release: bool = False) -> Tensors:
        """Return J^T g_k for each cotangent g_k. `release`: free the graph while it is used."""
        num_cotangents = len(next(iter(cotangents.values())))
        gradients = [
            self._gradient(_slice(cotangents, k), keep_graph=not release or k < num_cotangents - 1)
            for k in range(num_cotangents)
        ]
        return {name: torch.stack([gradient[name] for gradient in gradients]) for name in self._inputs}

    def vjp_for_hvp(self, cotangents: Tensors) -> tuple[Tensors, Tensors]:
        """Return the result of `vjp`, and the cotangents themselves."""
        detached = {name: cotangent.detach() for name, cotangent in cotangents.items()}
        return self.vjp(detached), detached

    def jvp(self, tangents: Tensors) -> tuple[Tensors, Tensors]:
        """Return J t_k for each tangent t_k, and the tangents themselves."""
        # The vjp is linear in its cotangents, and the vjp of this linear map is the jvp.
        with torch.enable_grad():
            cotangents = {
                name: torch.zeros_like(value).requires_grad_() for name, value in self._values.items()
            }
            gradient = self._gradient(cotangents, create_graph=True)
        names = [name for name in self._inputs if gradient[name].requires_grad]
        num_tangents = len(next(iter(tangents.values())))
        pushed = [
            torch.autograd.grad(
                [gradient[name] for name in names],
                list(cotangents.values()),
                [tangents[name][k] for name in names],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            for k in range(num_tangents)
        ]
        stacked = {name: torch.stack([each[i] for each in pushed]) for i, name in enumerate(cotangents)}
        return stacked, tangents

    def hvp(self, cotangents: Tensors, tangents: Tensors, r: Tensors, *, release: bool = False) -> Tensors:
        """Return the gradient of <r, values> + sum_k <g_k, J t_k> with respect to the inputs."""
        with torch.enable_grad():
            terms = [(r[name] * value).sum() for name, value in self._values.items()]
            for k in range(len(next(iter(tangents.values())))):
                gradient = self._gradient(_slice(cotangents, k), create_graph=True)
                terms += [(tangents[name][k] * gradient[name]).sum() for name in self._inputs]
            total = torch.stack(terms).sum()
        gradients = torch.autograd.grad(
            total,
            list(self._inputs.values()),
            retain_graph=not release,
            allow_unused=True,
            materialize_grads=True,
        )
        return dict(zip(self._inputs, gradients, strict=True))

    def _gradient(
        self, cotangents: Tensors, *, create_graph: bool = False, keep_graph: bool = True
    ) -> Tensors:
        gradients = torch.autograd.grad(
            list(self._values.values()),
            list(self._inputs.values()),
            [cotangents[name] for name in self._values],
            create_graph=create_graph,
            retain_graph=keep_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        return dict(zip(self._inputs, gradients, strict=True))


def _slice(tensors: Tensors, k: int) -> Tensors:
    return {name: each[k] for name, each in tensors.items()}
