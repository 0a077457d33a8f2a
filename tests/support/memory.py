"""Memory of an iteration, counted on fake tensors."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prometar.config.settings import Config
from prometar.training.rehearsal import rehearse


@dataclass(frozen=True)
class Memory:
    """Bytes that the tensors of an iteration take: what is there before it, and the most at any time in it.

    What the process has besides (torch itself, workspaces of libraries, a cache that keeps what was freed) is
    not in it.
    """

    before: int
    peak: int


def memory_of(config: Config, *, num_classes: int, dtype: torch.dtype = torch.float32) -> Memory:
    """The memory of one iteration of a configuration; a second or two a call.

    Of the iteration that takes most: all images but one are the support, whose gradients are differentiated.

    """
    rehearsal = rehearse(config, num_classes=num_classes, dtype=dtype, num_query=1)
    inputs = rehearsal.pixels_B3HW, rehearsal.labels_B
    with rehearsal.mode, _Live() as live:
        before = live.note([*rehearsal.state.tensors().values(), *inputs, *rehearsal.model.clip.tensors()])
        rehearsal()
    return Memory(before, live.peak)


@dataclass
class _Live(TorchDispatchMode):
    """The memory of all storages that it has seen and that still exist."""

    peak: int = 0
    _bytes: dict[StorageWeakRef, int] = field(default_factory=dict)
    _total: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def note(self, tensors: list[Tensor]) -> int:
        """Count these too; how many bytes are live, or were when they last made a difference."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference not in self._bytes:
                self._bytes[reference] = storage.nbytes()
                self._total += storage.nbytes()
        # Looked at only where it could be a new peak: what died counts until then.
        if self._total > self.peak:
            self._bytes = {each: size for each, size in self._bytes.items() if not each.expired()}
            self._total = sum(self._bytes.values())
            self.peak = max(self.peak, self._total)
        return self._total

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        self.note([each for each in tree_leaves(result) if isinstance(each, Tensor)])
        return result
