"""The accelerator, and transfers between it and the host: always one copy.

A GPU computes ahead while Python prepares the next step. Every copy to the host synchronizes, as does a copy
to the device from pageable memory. So a step's inputs are packed on the host and sent from pinned memory, and
its results are packed on the device and fetched at once.
"""

from collections.abc import Collection
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from prometar.errors import UserError, first_line

T = TypeVar("T")
_ALIGNMENT = 16  # bytes: enough for every dtype, and for vectorized loads


def default_device() -> torch.device:
    """Return the first GPU that this process sees, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def named_device(name: str) -> torch.device:
    """Return a device by name.

    Raises:
        UserError: the device does not exist, or cannot compute.

    Example:
        >>> named_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError, TypeError) as error:  # torch asserts that it is built for CUDA
        raise UserError(f"device {name!r:.80} cannot be used here: {first_line(error)}") from None
    return device


def send(values: T, device: torch.device) -> T:
    """Copy nested tuples, lists and dicts of host tensors to a device, asynchronously.

    The copies are views of one allocation. A tensor that occurs twice is copied once. On a CPU nothing is
    copied.

    Example:
        >>> images, labels = send((torch.zeros(2, 3), torch.tensor([0, 1])), torch.device("cpu"))
    """
    if device.type == "cpu":
        return values
    tensors = {id(leaf): leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
    packed, offsets = _packed(tensors.values(), pin_memory=True)
    there = packed.to(device, non_blocking=True)
    moved = {
        key: _part(there, tensor, offset)
        for (key, tensor), offset in zip(tensors.items(), offsets, strict=True)
    }
    sent: T = tree_map(lambda leaf: moved.get(id(leaf), leaf), values)
    return sent


def fetch(values: T) -> T:
    """Copy nested tuples, lists and dicts of tensors to the host, detached, in one synchronization.

    Example:
        >>> float(fetch({"loss": torch.tensor(0.5)})["loss"])
        0.5
    """
    values = tree_map_only(Tensor, Tensor.detach, values)
    away = [each for each in tree_leaves(values) if isinstance(each, Tensor) and each.device.type != "cpu"]
    if away:
        packed, offsets = _packed(away, device=away[0].device)
        here = packed.cpu()
        found = {id(t): _part(here, t, offset).clone() for t, offset in zip(away, offsets, strict=True)}
        values = tree_map(lambda leaf: found.get(id(leaf), leaf), values)
    return values


def give_back() -> None:
    """Return cached GPU memory of this process to others."""
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # the GPU failed, which was reported before
            torch.cuda.empty_cache()


def _packed(tensors: Collection[Tensor], **where: Any) -> tuple[Tensor, list[int]]:
    """Return the bytes of all tensors, and where those of each start."""
    offsets, size = [], 0
    for tensor in tensors:
        offsets.append(size)
        size += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
    packed = torch.empty(size, dtype=torch.uint8, **where)
    for tensor, offset in zip(tensors, offsets, strict=True):
        _part(packed, tensor, offset).copy_(tensor)
    return packed, offsets


def _part(packed: Tensor, like: Tensor, offset: int) -> Tensor:
    num_bytes = like.numel() * like.element_size()
    part: Tensor = packed[offset : offset + num_bytes].view(like.dtype).view(like.shape)
    return part
