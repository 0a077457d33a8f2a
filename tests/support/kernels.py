"""Kernels and bytes of an iteration, counted on fake tensors: what tests hold and benchmarks print."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prometar.training.rehearsal import Rehearsal


def operator_name(operator: Any) -> str:
    """`mul` for aten.mul.Tensor."""
    name: str = operator.overloadpacket.__name__
    return name


@dataclass
class Kernels(TorchDispatchMode):
    """Counts what is dispatched under it, by `name_of` the operator.

    A kernel is an ATen operation that is no view; its bytes are those of all its operands and results.
    """

    name_of: Callable[[Any], str] = operator_name
    views: int = 0
    kernels: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        if operator.namespace != "aten":
            return result
        if operator.is_view or operator.overloadpacket is torch.ops.aten._unsafe_view:
            self.views += 1
            return result
        name, tensors = self.name_of(operator), tree_leaves((args, kwargs, result))
        self.kernels[name] += 1
        self.bytes[name] += sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))
        return result


def kernels_of(rehearsal: Rehearsal, name_of: Callable[[Any], str] = operator_name) -> Kernels:
    """The kernels of one iteration."""
    with rehearsal.mode, Kernels(name_of) as counted:
        rehearsal()
    return counted
