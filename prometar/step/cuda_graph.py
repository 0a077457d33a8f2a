"""CUDA graphs: the operations of a function recorded once, and replayed as one launch.

A step on four images is thousands of small kernels, and a GPU waits for Python between them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

MOST = 8  # recordings: a batch of four has three shapes, or four; of larger ones the rare are not worth it
WARM_UP = 3  # calls before the recording, in which libraries choose their kernels and take their workspaces


@dataclass(frozen=True)
class _Recording:
    """Operations on inputs and outputs that stay where they are; `kind`: in what inputs must be alike."""

    kind: tuple[TreeSpec, list[Any]]
    inputs: list[Any]
    outputs: Any
    graph: torch.cuda.CUDAGraph


class Graph:
    """Calls a function of tensors; on a GPU, all calls but the first of a kind replay what that has recorded.

    The function must be the same at each call but for its inputs, ask nothing of the host, and have outputs
    of one shape for inputs of one shape. On a CPU it is called as it is, as where `MOST` shapes are recorded.
    Recordings share the memory in which they compute, and inputs and outputs that have one shape in all.

    Source: "CUDA Graphs", in the notes on CUDA semantics of PyTorch's documentation.

    Example:
        >>> Graph()(lambda x: 2 * x, torch.ones(2))
        tensor([2., 2.])
    """

    def __init__(self) -> None:
        self._recordings: list[_Recording] = []
        self._held: dict[Any, Tensor] = {}

    def __call__(self, function: Callable[..., Any], *inputs: Any) -> Any:
        leaves, spec = tree_flatten(inputs)
        if not any(isinstance(leaf, Tensor) and leaf.is_cuda for leaf in leaves):
            return function(*inputs)
        kind = spec, [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        recording = next((each for each in self._recordings if each.kind == kind), None)
        if recording is None:
            if len(self._recordings) == MOST:
                return function(*inputs)
            recording = self._recorded(function, leaves, kind)
        for static, leaf in zip(recording.inputs, leaves, strict=True):
            if isinstance(leaf, Tensor):
                static.copy_(leaf)
        recording.graph.replay()
        # The next replay writes to the same memory.
        return tree_map(lambda out: out.clone() if isinstance(out, Tensor) else out, recording.outputs)

    def _recorded(
        self, function: Callable[..., Any], leaves: list[Any], kind: tuple[TreeSpec, list[Any]]
    ) -> _Recording:
        try:
            return self._record(function, leaves, kind)
        except torch.OutOfMemoryError:
            if not self._recordings:
                raise
        # The others hold what it needs to warm up, and are recorded again if they come again.
        torch.cuda.synchronize()
        self._recordings, self._held = [], {}
        return self._record(function, leaves, kind)

    def _record(
        self, function: Callable[..., Any], leaves: list[Any], kind: tuple[TreeSpec, list[Any]]
    ) -> _Recording:
        static = self._kept("input", leaves)
        inputs = tree_unflatten(static, kind[0])
        side = _side()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                found, spec = tree_flatten(function(*inputs))
            outputs = self._kept("output", found)
            del found  # what is not held: the recording needs its memory
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        pool = self._recordings[0].graph.pool() if self._recordings else None
        with torch.cuda.graph(graph, pool=pool, stream=side):
            for output, new in zip(outputs, tree_flatten(function(*inputs))[0], strict=True):
                if isinstance(output, Tensor):
                    output.copy_(new)
        recording = _Recording(kind, static, tree_unflatten(outputs, spec), graph)
        self._recordings.append(recording)
        return recording

    def _kept(self, role: str, leaves: list[Any]) -> list[Any]:
        """Tensors like these that stay where they are: one for all recordings where the shape is one."""
        kept = list(leaves)
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                key = role, place, leaf.shape, leaf.dtype
                if key in self._held:
                    self._held[key].copy_(leaf)
                else:
                    self._held[key] = leaf.clone()
                kept[place] = self._held[key]
        return kept


@cache
def _side() -> torch.cuda.Stream:
    """Where a process warms up and records: a library keeps a workspace for each stream that it has seen."""
    return torch.cuda.Stream()
