"""The accelerator, and what passes between it and the host: always in one copy.

A GPU computes while Python prepares what comes next, as long as nobody asks it for an answer: every copy to
the host is a wait, and so is a copy to the device from pageable memory. So what a step needs is made on the
host, packed, and sent from pinned memory; and what the host must know is packed there, and fetched at once.
"""

import warnings
from collections.abc import Collection
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from prometar.errors import UserError, first_line, one_line

T = TypeVar("T")
_ALIGNMENT = 16  # bytes: enough for every dtype, and for loads of several values at a time


def default_device() -> torch.device:
    """The GPU that this process is given, or the CPU."""
    # Ray shows a worker the GPUs that its trial was given, and no others.
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def named_device(name: str) -> torch.device:
    """The device that a user names.

    Raises:
        UserError: there is none of that name here, or nothing can be computed on it.

    Example:
        >>> named_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        compute_on(device)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch asserts that it is built for CUDA
        raise UserError(f"device {name!r:.80} cannot be used here: {first_line(error)}") from None
    return device


def compute_on(device: torch.device) -> None:
    """Raises a RuntimeError where torch has no kernels for a device, or they fail."""
    torch.ones(1, device=device).sum().item()


def why_no_gpu() -> str:
    """Why torch can use no GPU in this process; empty where it can."""
    with warnings.catch_warnings(record=True) as warned:  # of a driver that is too old, and the like
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return ""
    built = torch.version.cuda
    why = f"no GPU can be used (torch is built for CUDA {built})" if built else "torch is built without CUDA"
    return why + "".join(f"; {one_line(str(warning.message))[:160]}" for warning in warned[:1])


def send(values: T, device: torch.device) -> T:
    """Nested tuples, lists and dicts of host tensors, on a device: one copy, which nobody waits for.

    Tensors are views of one piece of memory there, and one that occurs twice is one there too. On a CPU they
    are themselves.

    Example:
        >>> images, labels = send((torch.zeros(2, 3), torch.tensor([0, 1])), torch.device("cpu"))
    """
    if device.type == "cpu":
        return values
    leaves, spec = tree_flatten(values)
    tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}
    parcel, offsets = _packed(tensors.values(), pin_memory=True)
    there = parcel.to(device, non_blocking=True)
    moved = {
        key: _part(there, tensor, offset)
        for (key, tensor), offset in zip(tensors.items(), offsets, strict=True)
    }
    sent: T = tree_unflatten([moved.get(id(leaf), leaf) for leaf in leaves], spec)
    return sent


def fetch(values: T) -> T:
    """Nested tuples, lists and dicts of tensors, detached on the host: one copy, and one wait.

    Example:
        >>> float(fetch({"loss": torch.tensor(0.5)})["loss"])
        0.5
    """
    leaves, spec = tree_flatten(values)
    leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    away = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.device.type != "cpu"]
    if away:
        parcel, offsets = _packed(away, device=away[0].device)
        here = parcel.cpu()
        found = {id(t): _part(here, t, offset).clone() for t, offset in zip(away, offsets, strict=True)}
        leaves = [found.get(id(leaf), leaf) for leaf in leaves]
    fetched: T = tree_unflatten(leaves, spec)
    return fetched


def give_back() -> None:
    """Memory of the GPU that this process has freed, and its allocator keeps, goes to the others on it."""
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # one that has failed, as whoever asked it has been told
            torch.cuda.empty_cache()


def _packed(tensors: Collection[Tensor], **where: Any) -> tuple[Tensor, list[int]]:
    """A parcel of all tensors' bytes, and where those of each begin."""
    offsets, size = [], 0
    for tensor in tensors:
        offsets.append(size)
        size += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
    parcel = torch.empty(size, dtype=torch.uint8, **where)
    for tensor, offset in zip(tensors, offsets, strict=True):
        _part(parcel, tensor, offset).copy_(tensor)
    return parcel, offsets


def _part(parcel: Tensor, like: Tensor, offset: int) -> Tensor:
    """A parcel's bytes from an offset on, as a tensor of this dtype and shape."""
    num_bytes = like.numel() * like.element_size()
    part: Tensor = parcel[offset : offset + num_bytes].view(like.dtype).view(like.shape)
    return part
