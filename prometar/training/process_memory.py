"""How much of a machine's memory a run takes, known before it begins: counted on fake tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prometar.clip.model import Clip
from prometar.config.settings import Config
from prometar.data.splits.objective import Problem
from prometar.training.rehearsal import rehearse
from prometar.training.run import DTYPES
from prometar.training.session import kept_bytes

PROCESSES = 950 * 2**20
"""Bytes that a trainer and its stream's task hold before any tensor: Python, torch, Ray and open_clip."""
_OF_WEIGHTS = 4  # what a configuration's iteration takes at most beside the weights themselves
_SMALL = 0.5  # of the processes: less is in the error of what they take


@dataclass(frozen=True)
class Held:
    """What a run's process holds of a backbone and of data sets.

    Args:
        weights: Bytes of the backbone's tensors.
        num_classes: The most that a run is trained on.
        images: Bytes of those that it is scored on and keeps (`kept_bytes`).
    """

    weights: int
    num_classes: int
    images: int = 0

    @classmethod
    def of(cls, clip: Clip, splits: Sequence[Problem]) -> "Held":
        """Of runs on any of these."""
        most = max(len(split.classnames) for split in splits)
        return cls(clip.num_bytes, most, kept_bytes(splits, clip.image_size))


def process_memory(config: Config, held: Held, *, on_gpu: bool = False) -> int:
    """Bytes that a run of a configuration takes on a machine.

    What the processes hold, and the peak of an iteration as it is counted on fake tensors (`memory_of`, a few
    seconds). Where the weights are so small that it cannot matter, a multiple of them stands for it.

    Args:
        on_gpu: Whether an iteration's tensors are in a GPU's memory, and not in the machine's.

    Example:
        >>> process_memory(Config(), Held(weights=30 * 2**20, num_classes=12)) / 2**30 < 1.1
        True
    """
    process = PROCESSES + held.images
    if on_gpu:
        return process + held.weights
    roughly = held.weights * (1 + _OF_WEIGHTS)
    if roughly < _SMALL * PROCESSES:
        return process + roughly
    dtype = DTYPES[config.backbone.precision]
    try:
        counted = memory_of(config, num_classes=held.num_classes, dtype=dtype)
    except Exception:  # a part of the user's own may need data, and is no reason not to run it
        return process + roughly
    return process + counted.peak


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

    Example:
        >>> mini = Config().override({"backbone.name": "mini", "backbone.pretrained": None})
        >>> memory = memory_of(mini, num_classes=12)
        >>> memory.before < memory.peak < 2**30
        True
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
