"""An accelerator that any machine has: its values lie in host memory, and it sees what is asked of it.

A device of its own for torch, registered as a Python back end: its tensors do not mix with the host's, and
autograd, torch.func and vmap treat them as those of a GPU. What a GPU would make the host wait for is noted,
and so is every copy, and where it was made.

Import it before anything is differentiated: autograd counts devices once.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
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
    """What torch asks of a device's module, here `torch.pretend`; it draws no random numbers of its own."""

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
_OURS = str(Path(__file__).resolve().parents[2])
aten = torch.ops.aten

# What makes the host wait, besides copies to it: the shape of the answer is in the data, or the answer is.
_ASKS = {
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


class MixedDevices(RuntimeError):
    """An operation on tensors of the host and of the accelerator."""


@dataclass
class Traffic:
    """What has passed since it was watched; `made`: tensors that were made on the host, if asked for."""

    copies: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)

    def clear(self) -> None:
        self.copies = []
        self.waits = []
        self.made = []


class There(Tensor):
    """A tensor of the accelerator."""

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
    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


_limits: list[int] = []  # bytes
_allocated: dict[int, int] = {}  # bytes of each storage, by address
_users: Counter[int] = Counter()  # tensors of each storage


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[None]:
    """The accelerator has so much memory within: more raises torch's error of a lack of memory."""
    _limits.append(num_bytes)
    try:
        yield
    finally:
        _limits.pop()


def allocated_bytes() -> int:
    return sum(_allocated.values())


def _allocate(there: There) -> None:
    storage = there.held.untyped_storage()
    address = storage.data_ptr()
    _allocated[address] = storage.nbytes()
    _users[address] += 1
    weakref.finalize(there, _release, address)
    if _limits and allocated_bytes() > _limits[-1]:
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {storage.nbytes()} bytes.")


def _release(address: int) -> None:
    _users[address] -= 1
    if not _users[address]:
        del _users[address]
        _allocated.pop(address, None)


_watched: list[Traffic] = []
_pinned: set[int] = set()  # addresses


@contextmanager
def accelerator() -> Iterator[Traffic]:
    """The accelerator can be used within; yields what is seen of it."""
    traffic = Traffic()
    _watched.append(traffic)
    try:
        with _Mode():
            yield traffic
    finally:
        _watched.pop()


def _run(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on held values, if it is one of the accelerator."""
    tensors = list(_tensors(args)) + list(_tensors(tuple(kwargs.values())))
    there = [tensor for tensor in tensors if isinstance(tensor, There)]
    device = kwargs.get("device")
    goes_there = torch.device(device) == DEVICE if device is not None else bool(there)
    if not there and not goes_there:
        return _on_host(op, args, kwargs)
    traffic = _watched[-1]
    packet = op._overloadpacket
    copies = packet in (aten._to_copy, aten.copy_, aten._copy_from)
    if copies:
        source = args[0] if packet is aten._to_copy else args[1]
        target_there = goes_there if packet is aten._to_copy else isinstance(args[0], There)
        _note_copy(source, target_there, bool(kwargs.get("non_blocking", args[2:3] == (True,))))
    elif (
        packet in _ASKS
        or op is aten.repeat_interleave.Tensor
        or (packet in (aten.index, aten.index_put, aten.index_put_) and _by_mask(args[1]))
    ):
        traffic.waits.append(f"{op} at {_place()}")
    elif any(tensor.dim() for tensor in tensors if not isinstance(tensor, There)):
        raise MixedDevices(f"{op} of tensors here and there, at {_place()}")
    if device is not None:
        kwargs = kwargs | {"device": HOST}
    if packet is aten._efficientzerotensor:  # it has no memory that could be held
        op = aten.zeros.default
    if packet is aten.native_layer_norm_backward:
        args = _with_own_statistics(op, args)
    out = op(*_held(args), **_held(kwargs))
    if packet is aten.native_layer_norm:
        out = out[0], *map(_accumulated, out[1:])
    if not goes_there:
        return out
    if op._schema.is_mutable and op._schema.name.endswith("_"):
        return args[0]
    return tree_map(lambda x: There(x) if isinstance(x, Tensor) else x, out)


def _accumulated(tensor: Tensor) -> Tensor:
    """In the precision that a GPU sums in, and keeps a LayerNorm's statistics in; a CPU has the input's."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _with_own_statistics(op: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A LayerNorm's statistics as a CPU takes them; a GPU takes its own, and a cotangent like the input."""
    g, x, shape, *statistics = args[:5]
    kinds = [g.dtype, *(each.dtype for each in statistics)]
    wanted = _accumulated(x.held).dtype
    if kinds != [x.dtype, wanted, wanted]:
        raise TypeError(f"{op} of {x.dtype} takes {x.dtype} and {wanted}, found {kinds}, at {_place()}")
    return g, x, shape, *(each.held.to(x.dtype) for each in statistics), *args[5:]


def _on_host(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    pin = kwargs.pop("pin_memory", None)
    out = op(*args, **kwargs)
    if isinstance(out, Tensor):
        if pin:
            _pinned.add(out.untyped_storage().data_ptr())
        if out.dim() or op._overloadpacket is not aten._to_copy:  # vmap gives Python's numbers a dtype
            _watched[-1].made.append(f"{op} at {_place()}")
    return out


def _note_copy(source: Tensor, to_there: bool, non_blocking: bool) -> None:
    from_there = isinstance(source, There)
    if from_there and not to_there:
        _watched[-1].waits.append(f"a copy to the host at {_place()}")
    elif to_there and not from_there:
        _watched[-1].copies.append(_place())
        if not (non_blocking and source.untyped_storage().data_ptr() in _pinned):
            _watched[-1].waits.append(f"a copy from pageable memory at {_place()}")


def _by_mask(indices: Any) -> bool:
    """Whether an index asks for the number of its ones, or comes from the host."""
    return any(
        isinstance(index, Tensor)
        and (index.dtype in (torch.bool, torch.uint8) or not isinstance(index, There))
        for index in indices
    )


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _held(value: Any) -> Any:
    if isinstance(value, There):
        return value.held
    if isinstance(value, list | tuple):
        return type(value)(_held(each) for each in value)
    if isinstance(value, dict):
        return {key: _held(each) for key, each in value.items()}
    return value


def _place() -> str:
    """The innermost line of ours that has led here."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_OURS) and name != __file__ and ".venv" not in name:
            return f"{Path(name).relative_to(_OURS)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "nowhere of ours"


# torch.tensor(..., device=) leaves modes aside, and comes to the back end itself.
_LIBRARY = torch.library.Library("aten", "IMPL", "PrivateUse1")


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return There(torch.empty_strided(size, stride, dtype=dtype))


def _copy(target: There, source: Tensor, non_blocking: bool = False) -> Tensor:
    _note_copy(source, True, non_blocking)
    target.held.copy_(source)
    return target


_LIBRARY.impl("empty_strided", _empty_strided)
_LIBRARY.impl("copy_", _copy)
