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

    Args:
        function: Function that returns values and auxiliary values. Auxiliary values are not differentiated.
        leaves: The point at which it is evaluated.
        differentiable: True if the gradients can be differentiated with respect to leaves, cotangents and
            tensors that the function captures. False to evaluate the function at detached leaves.
    """
    if differentiable:
        # Views are new variables. The function may capture tensors that were computed from the given leaves.
        # The gradients do not include the paths through these tensors.
        leaves = {name: leaf.view_as(leaf) for name, leaf in leaves.items()}
    else:
        leaves = fresh_leaves(leaves)
    values, auxiliary = function(leaves)

    def pull_back(cotangents: Tensors) -> Tensors:
        differentiable_names = [name for name in cotangents if values[name].requires_grad]
        if not leaves or not differentiable_names:
            return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        gradients: tuple[Tensor, ...] = torch.autograd.grad(
            [values[name] for name in differentiable_names],
            list(leaves.values()),
            [cotangents[name] for name in differentiable_names],
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

    Has the methods of `prometar.clip.tower.Pass`, but inputs and values are dictionaries. J: Jacobian of the
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
        num_cotangents = _leading_size(cotangents)
        gradients = []
        for k in range(num_cotangents):
            is_last = k == num_cotangents - 1
            keep_graph = not (release and is_last)
            gradients.append(self._gradient(_slice(cotangents, k), keep_graph=keep_graph))
        return {name: torch.stack([gradient[name] for gradient in gradients]) for name in self._inputs}

    def vjp_for_hvp(self, cotangents: Tensors) -> tuple[Tensors, Tensors]:
        """Return the result of `vjp`, and the cotangents themselves."""
        detached = {name: cotangent.detach() for name, cotangent in cotangents.items()}
        return self.vjp(detached), detached

    def jvp(self, tangents: Tensors) -> tuple[Tensors, Tensors]:
        """Return J t_k for each tangent t_k, and the tangents themselves."""
        # The vjp is a linear function of its cotangents, so it can be evaluated at zeros. The vjp of this
        # linear function is the jvp.
        with torch.enable_grad():
            cotangents = {
                name: torch.zeros_like(value).requires_grad_() for name, value in self._values.items()
            }
            gradient = self._gradient(cotangents, create_graph=True)
        differentiable_names = [name for name in self._inputs if gradient[name].requires_grad]
        value_tangents: list[Tensors] = []  # for each k
        for k in range(_leading_size(tangents)):
            tensors = torch.autograd.grad(
                [gradient[name] for name in differentiable_names],
                list(cotangents.values()),
                [tangents[name][k] for name in differentiable_names],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            value_tangents.append(dict(zip(cotangents, tensors, strict=True)))
        stacked = {name: torch.stack([each[name] for each in value_tangents]) for name in cotangents}
        return stacked, tangents

    def hvp(self, cotangents: Tensors, tangents: Tensors, r: Tensors, *, release: bool = False) -> Tensors:
        """Return the gradient of <r, values> + sum_k <g_k, J t_k> with respect to the inputs."""
        with torch.enable_grad():
            terms = [(r[name] * value).sum() for name, value in self._values.items()]
            for k in range(_leading_size(tangents)):
                # <g_k, J t_k> = <J^T g_k, t_k>
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
        """Return J^T g for one cotangent g, which has no leading dimension."""
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


def _leading_size(tensors: Tensors) -> int:
    """Return K, the size of the first dimension, which all the tensors share."""
    return len(next(iter(tensors.values())))


def _slice(tensors: Tensors, k: int) -> Tensors:
    """Return item k of the first dimension of each tensor."""
    return {name: each[k] for name, each in tensors.items()}
