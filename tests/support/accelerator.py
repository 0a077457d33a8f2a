"""A simulated accelerator, for tests on machines without a GPU.

It is a separate torch device, "pretend", registered as a Python back end. Its tensors hold their values in
host memory. They do not mix with host tensors, and autograd, torch.func and vmap treat them like those of a
GPU. The accelerator records all copies and all operations for which a GPU would make the host wait, each with
the line of code that caused it.

Import this module before anything is differentiated, because autograd counts devices only once.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


class _Module:
    """The module `torch.pretend`, with the functions that torch requires of a device.

    The accelerator has no random number generator.
    """

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass


_setup_privateuseone_for_python_backend("pretend", backend_module=_Module())
DEVICE = torch.device("pretend", 0)
HOST = torch.device("cpu")
_ROOT = str(Path(__file__).resolve().parents[2])
aten = torch.ops.aten

_WAITING_OPS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.masked_select,
    aten.equal,
    aten.is_nonzero,
    aten.bincount,
}
"""Operations for which the host waits. They return a Python number, or a shape that depends on the values."""


class MixedDevices(RuntimeError):
    """An operation mixes tensors of the host and of the accelerator."""


@dataclass
class Traffic:
    """Events since the recording began, each with the line of code that caused it.

    Attributes:
        copies: Copies from the host to the accelerator.
        waits: Operations and copies for which the host waits.
        made: Operations that made a tensor on the host.
    """

    copies: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Forget all events."""
        self.copies = []
        self.waits = []
        self.made = []


class There(Tensor):
    """A tensor of the accelerator. "There" means on the accelerator in all names of this module.

    Attributes:
        held: Host tensor with its values.
    """

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "There":
        there: There = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        there.held = held
        _allocate(there)
        return there

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"There({self.held})"


class _Mode(TorchDispatchMode):
    """Mode that also sees operations without a tensor of the accelerator."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


_limits: list[int] = []
"""Memory limits in bytes. The last one applies."""
_allocated: dict[int, int] = {}
"""Size of each storage in bytes, by address."""
_num_users: Counter[int] = Counter()
"""Number of tensors of each storage, by address."""


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[None]:
    """Limit the memory of the accelerator. An allocation beyond it raises `torch.OutOfMemoryError`."""
    _limits.append(num_bytes)
    try:
        yield
    finally:
        _limits.pop()


def allocated_bytes() -> int:
    """Return the memory of all tensors of the accelerator."""
    return sum(_allocated.values())


def _allocate(there: There) -> None:
    """Count the memory of a new tensor until it is deleted. Tensors can share a storage."""
    storage = there.held.untyped_storage()
    address = storage.data_ptr()
    _allocated[address] = storage.nbytes()
    _num_users[address] += 1
    weakref.finalize(there, _release, address)
    if _limits and allocated_bytes() > _limits[-1]:
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {storage.nbytes()} bytes.")


def _release(address: int) -> None:
    _num_users[address] -= 1
    if _num_users[address] == 0:
        del _num_users[address]
        _allocated.pop(address, None)


_recordings: list[Traffic] = []
"""Traffic of the active contexts. Events belong to the last one."""
_pinned: set[int] = set()
"""Addresses of storages in pinned host memory."""


@contextmanager
def accelerator() -> Iterator[Traffic]:
    """Make the accelerator available. Yield the record of its traffic."""
    traffic = Traffic()
    _recordings.append(traffic)
    try:
        with _Mode():
            yield traffic
    finally:
        _recordings.pop()


def _run(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation, on the held values if it involves the accelerator.

    Raises:
        MixedDevices: Tensors of the host and of the accelerator are mixed, other than by a copy.
    """
    # Where is it run?
    tensors = [*_tensors(args), *_tensors(kwargs.values())]
    inputs_there = any(isinstance(tensor, There) for tensor in tensors)
    device = kwargs.get("device")
    goes_there = inputs_there if device is None else torch.device(device) == DEVICE
    if not inputs_there and not goes_there:
        return _run_on_host(op, args, kwargs)

    # What does the host notice of it?
    packet = op._overloadpacket
    if packet is aten._to_copy:
        _record_copy(args[0], to_there=goes_there, non_blocking=_is_non_blocking(args, kwargs))
    elif packet in (aten.copy_, aten._copy_from):
        to_there = isinstance(args[0], There)
        _record_copy(args[1], to_there=to_there, non_blocking=_is_non_blocking(args, kwargs))
    elif _waits(op, args):
        _recordings[-1].waits.append(f"{op} at {_place()}")
    # A GPU accepts host tensors without dimensions as numbers.
    elif any(tensor.dim() for tensor in tensors if not isinstance(tensor, There)):
        raise MixedDevices(f"{op} mixes host and accelerator at {_place()}")

    # Run it on the host, with the numbers of a GPU.
    if device is not None:
        kwargs = kwargs | {"device": HOST}
    if packet is aten._efficientzerotensor:  # it has no memory that could be held
        op = aten.zeros.default
    if packet is aten.native_layer_norm_backward:
        args = _with_cpu_statistics(op, args)
    out = op(*_held(args), **_held(kwargs))
    if packet is aten.native_layer_norm:
        normed, *statistics = out
        out = (normed, *(_accumulated(each) for each in statistics))

    # Move its result to the accelerator.
    if not goes_there:
        return out
    if op._schema.is_mutable and op._schema.name.endswith("_"):
        return args[0]
    return tree_map(lambda x: There(x) if isinstance(x, Tensor) else x, out)


def _is_non_blocking(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a copy is asynchronous. Some operations take this as the third argument."""
    return bool(kwargs.get("non_blocking", args[2:3] == (True,)))


def _waits(op: Any, args: tuple[Any, ...]) -> bool:
    """Return whether a GPU would make the host wait for an operation other than a copy."""
    packet = op._overloadpacket
    if packet in (aten.index, aten.index_put, aten.index_put_):
        return _has_waiting_index(args[1])
    return packet in _WAITING_OPS or op is aten.repeat_interleave.Tensor


def _accumulated(tensor: Tensor) -> Tensor:
    """Return a tensor in the precision in which a GPU sums.

    A GPU keeps the statistics of a LayerNorm in this precision, a CPU in that of the input.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _with_cpu_statistics(op: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a LayerNorm's backward pass, with statistics in the precision of a CPU.

    Raises:
        TypeError: A GPU would refuse the arguments. It requires a cotangent in the precision of the input,
            and statistics in the precision in which it sums.
    """
    cotangent, x, shape, *statistics = args[:5]
    found = [cotangent.dtype, *(each.dtype for each in statistics)]
    required = _accumulated(x.held).dtype
    if found != [x.dtype, required, required]:
        raise TypeError(f"{op} of {x.dtype} takes {x.dtype} and {required}, found {found}, at {_place()}")
    return cotangent, x, shape, *(each.held.to(x.dtype) for each in statistics), *args[5:]


def _run_on_host(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation without tensors of the accelerator. Record the tensor that it makes.

    Host memory is not really pinned, because this requires a GPU.
    """
    pin_memory = kwargs.pop("pin_memory", False)
    out = op(*args, **kwargs)
    if isinstance(out, Tensor):
        if pin_memory:
            _pinned.add(out.untyped_storage().data_ptr())
        # vmap converts Python numbers with `_to_copy`, which makes no tensor that a GPU would need.
        is_number = out.dim() == 0 and op._overloadpacket is aten._to_copy
        if not is_number:
            _recordings[-1].made.append(f"{op} at {_place()}")
    return out


def _record_copy(source: Tensor, *, to_there: bool, non_blocking: bool) -> None:
    """Record a copy between host and accelerator, and whether the host waits for it."""
    traffic = _recordings[-1]
    from_there = isinstance(source, There)
    if from_there and not to_there:
        traffic.waits.append(f"a copy to the host at {_place()}")
    elif to_there and not from_there:
        traffic.copies.append(_place())
        is_pinned = source.untyped_storage().data_ptr() in _pinned
        if not (non_blocking and is_pinned):
            traffic.waits.append(f"a copy from pageable memory at {_place()}")


def _has_waiting_index(indices: Any) -> bool:
    """Return whether the host waits for an index: a mask, whose ones are counted, or a host tensor."""
    for index in indices:
        if isinstance(index, Tensor):
            is_mask = index.dtype in (torch.bool, torch.uint8)
            if is_mask or not isinstance(index, There):
                return True
    return False


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield all tensors among values and nested sequences."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _held(value: Any) -> Any:
    """Return a value in which each tensor of the accelerator is replaced by the host tensor that it holds."""
    if isinstance(value, There):
        return value.held
    if isinstance(value, list | tuple):
        return type(value)(_held(each) for each in value)
    if isinstance(value, dict):
        return {key: _held(each) for key, each in value.items()}
    return value


def _place() -> str:
    """Return the innermost line of the project that led here, as file and line number."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_ROOT) and file != __file__ and ".venv" not in file:
            return f"{Path(file).relative_to(_ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "no line of the project"


# torch.tensor(..., device=...) bypasses modes and calls the back end directly.
_LIBRARY = torch.library.Library("aten", "IMPL", "PrivateUse1")


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    """Return a new tensor of the accelerator."""
    return There(torch.empty_strided(size, stride, dtype=dtype))


def _copy(target: There, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy a host tensor into a tensor of the accelerator."""
    _record_copy(source, to_there=True, non_blocking=non_blocking)
    target.held.copy_(source)
    return target


_LIBRARY.impl("empty_strided", _empty_strided)
_LIBRARY.impl("copy_", _copy)
