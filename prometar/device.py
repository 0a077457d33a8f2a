"""Default device, and packed transfers between host and device.

GPU kernels run asynchronously while Python prepares the next step. Every copy to the host synchronizes, as
does a copy to the device from pageable memory. Therefore, `send` packs tensors in pinned memory, `to_cpu`
packs them on the device, and both transfer them in a single copy.
"""

import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from prometar.errors import MAX_LINE_LENGTH, UserError, first_line, is_out_of_memory, one_line

CONTEXT_BYTES = 600 * 2**20
"""GPU memory that a process needs besides torch's allocator: CUDA context, kernels, library handles."""
T = TypeVar("T")
_ALIGNMENT = 16  # bytes, a multiple of every dtype's size and suitable for vectorized loads


def default_device() -> torch.device:
    """Return the first GPU that is visible to this process, or the CPU if there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def num_gpus() -> int:
    """Return the number of GPUs that processes on this machine can use.

    A process sees only one slice (instance) of a GPU that is partitioned with MIG. But each slice that
    CUDA_VISIBLE_DEVICES lists can serve another process, so each counts as a GPU.
    """
    if not torch.cuda.is_available():
        return 0
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    slices = [name for name in listed if name.strip().startswith("MIG-")]
    return len(slices) or torch.cuda.device_count()


def gpu_problem() -> str:
    """Return why torch cannot compute on this process's GPU, or "" if it can.

    A GPU may be visible but unusable: torch may not support its architecture, its memory may have failed, or
    another process may use it exclusively. So the check computes a matrix product and a convolution.

    Raises:
        MemoryError: other processes use all of the GPU's memory.
    """
    with warnings.catch_warnings(record=True) as warned:  # e.g. about an old driver or another architecture
        warnings.simplefilter("always")
        if not torch.cuda.is_available():
            cuda = torch.version.cuda
            problem = f"torch (built for CUDA {cuda}) finds no GPU" if cuda else "torch is built without CUDA"
        else:
            problem = _compute_problem(default_device())
    if problem and warned:
        warning = one_line(str(warned[0].message))[:MAX_LINE_LENGTH]
        problem += f"; {warning}"
    return problem


def _compute_problem(device: torch.device) -> str:
    try:
        ones = torch.ones(1, 16, 16, 16, device=device)
        product = float((ones[0, 0] @ ones[0, 0]).sum())
        convolution = float(torch.nn.functional.conv2d(ones, ones).sum())
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error, is_checked=False):
            raise MemoryError(first_line(error)) from None
        return first_line(error)
    if (product, convolution) != (16.0**3, 16.0**3):
        return f"it computes wrong results ({product:g} and {convolution:g} instead of 4096)"
    return ""


def limit_gpu_memory(share: float) -> None:
    """Limit this process to a share of its GPU's memory, minus the memory that its CUDA context needs.

    Without this limit, a process that exceeds its share takes memory from other processes on the GPU, and any
    of them may fail. With the limit, the process itself runs out of memory.

    Args:
        share: Share of the GPU, e.g. 0.25. With 1, there is no limit.
    """
    if not torch.cuda.is_available():
        return
    fraction = 1.0
    if share < 1:
        total = torch.cuda.get_device_properties(0).total_memory
        # On a small GPU, the share may be smaller than a context.
        fraction = max(share - CONTEXT_BYTES / total, share / 2)
    torch.cuda.set_per_process_memory_fraction(fraction)


def named_device(name: str) -> torch.device:
    """Return a device by name.

    Raises:
        UserError: the device does not exist, or cannot be used.

    Example:
        >>> named_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError, TypeError) as error:  # AssertionError: torch is built without CUDA
        reason = first_line(error).rstrip(".")
        raise UserError(f"Cannot use the device {name!r:.80} ({reason}). Use 'cpu' or 'cuda'.") from None
    return device


def send(values: T, device: torch.device) -> T:
    """Copy nested tuples, lists and dicts of host tensors to a device, asynchronously.

    If the device is a CPU, return `values`. Otherwise, the copies are views of one allocation, and a tensor
    that occurs twice is copied once.

    Example:
        >>> images, labels = send((torch.zeros(2, 3), torch.tensor([0, 1])), torch.device("cpu"))
    """
    if device.type == "cpu":
        return values
    tensors = {id(leaf): leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
    packed, offsets = _pack(tensors.values(), pin_memory=True)
    on_device = packed.to(device, non_blocking=True)
    moved: dict[int, Tensor] = {}
    for (key, tensor), offset in zip(tensors.items(), offsets, strict=True):
        moved[key] = _view(on_device, tensor, offset)
    return tree_map(lambda leaf: moved.get(id(leaf), leaf), values)


def to_cpu(values: T) -> T:
    """Detach the tensors in nested tuples, lists and dicts. Copy them to the host with one synchronization.

    Example:
        >>> float(to_cpu({"loss": torch.tensor(0.5)})["loss"])
        0.5
    """
    values = tree_map_only(Tensor, Tensor.detach, values)
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    remote = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    if not remote:
        return values
    packed, offsets = _pack(remote, device=remote[0].device)
    on_host = packed.cpu()
    moved: dict[int, Tensor] = {}
    for tensor, offset in zip(remote, offsets, strict=True):
        moved[id(tensor)] = _view(on_host, tensor, offset).clone()
    return tree_map(lambda leaf: moved.get(id(leaf), leaf), values)


@contextmanager
def matmul_precision(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Compute float32 matrix products on GPUs in full float32 ("ieee") or in TF32, within the context.

    TF32 rounds the factors to 10 mantissa bits and adds the products in float32. It requires an NVIDIA GPU of
    compute capability 8.0 or later. Other devices ignore the setting.

    Example:
        >>> with matmul_precision("tf32"):
        ...     product = torch.ones(2, 2) @ torch.ones(2, 2)
    """
    settings = torch.backends.cuda.matmul
    previous = settings.fp32_precision
    settings.fp32_precision = precision
    try:
        yield
    finally:
        settings.fp32_precision = previous


def release_cached_memory() -> None:
    """Release GPU memory that torch caches, so that other processes can use it."""
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # a failed GPU was already reported
            torch.cuda.empty_cache()


def _pack(tensors: Collection[Tensor], **options: Any) -> tuple[Tensor, list[int]]:
    """Copy the bytes of all tensors into a new tensor. Return it and the byte offset of each tensor."""
    offsets = []
    size = 0
    for tensor in tensors:
        offsets.append(size)
        num_bytes = tensor.numel() * tensor.element_size()
        padding = -num_bytes % _ALIGNMENT
        size += num_bytes + padding
    packed = torch.empty(size, dtype=torch.uint8, **options)
    for tensor, offset in zip(tensors, offsets, strict=True):
        _view(packed, tensor, offset).copy_(tensor)
    return packed, offsets


def _view(packed: Tensor, like: Tensor, offset: int) -> Tensor:
    """Return the bytes of `packed` from `offset` on as a tensor of the dtype and shape of `like`."""
    num_bytes = like.numel() * like.element_size()
    return packed[offset : offset + num_bytes].view(like.dtype).view(like.shape)
