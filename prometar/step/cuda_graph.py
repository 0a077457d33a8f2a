"""CUDA graphs: the operations of a function recorded once, and replayed as one launch.

A step on four images is thousands of small kernels, and a GPU waits for Python between them.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

WARM_UP = 3  # calls before the recording, in which libraries choose their kernels and take their workspaces


class Graph:
    """Calls a function of tensors; on a GPU, all calls but the first replay what the first has recorded.

    The function must be the same at each call but for its inputs, ask nothing of the host, and have outputs
    of one shape for inputs of one shape. Inputs of other shapes are recorded anew. On a CPU it is called as
    it is.

    Source: "CUDA Graphs", in the notes on CUDA semantics of PyTorch's documentation.

    Example:
        >>> Graph()(lambda x: 2 * x, torch.ones(2))
        tensor([2., 2.])
    """

    def __init__(self) -> None:
        self._kind: tuple[TreeSpec, list[Any]] | None = None
        self._inputs: list[Any] = []
        self._outputs: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, function: Callable[..., Any], *inputs: Any) -> Any:
        leaves, spec = tree_flatten(inputs)
        if not any(isinstance(leaf, Tensor) and leaf.is_cuda for leaf in leaves):
            return function(*inputs)
        kind = spec, [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        if kind != self._kind:
            self._record(function, leaves, spec)
            self._kind = kind
        for static, leaf in zip(self._inputs, leaves, strict=True):
            if isinstance(leaf, Tensor):
                static.copy_(leaf)
        assert self._graph is not None
        self._graph.replay()
        # The next replay writes to the same memory.
        return tree_map(lambda out: out.clone() if isinstance(out, Tensor) else out, self._outputs)

    def _record(self, function: Callable[..., Any], leaves: list[Any], spec: TreeSpec) -> None:
        if self._graph is not None:  # goes first: its memory, as much as the next one's, is its own
            torch.cuda.synchronize()
            self._kind = self._graph = self._outputs = None
        self._inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        inputs = tree_unflatten(self._inputs, spec)
        side = _side()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            self._outputs = function(*inputs)
        self._graph = graph


@cache
def _side() -> torch.cuda.Stream:
    """Where a process warms up and records: a library keeps a workspace for each stream that it has seen."""
    return torch.cuda.Stream()
