"""Tensors of a TorchScript archive, such as OpenAI's CLIP files, without its code.

Such an archive is a zip: `data.pkl` tells how a tree of modules is built, `data/0`, `data/1`, ... hold the
numbers. torch's own loader also compiles and runs methods that the archive brings (`__setstate__`). Here the
pickle is followed by a machine that knows 32 opcodes and builds tensors, numbers, plain containers and inert
modules only; nothing that the archive names is looked up or called.
"""

import math
import pickletools
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from prometar.errors import UserError, first_line

_MOST_STRUCTURE = 2 * 2**20  # bytes of data.pkl; CLIP's has some 0.1 MB
_DEEPEST = 64  # modules inside modules; CLIP has six

_DTYPES = {
    "torch DoubleStorage": torch.float64, "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16, "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64, "torch IntStorage": torch.int32, "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8, "torch ByteStorage": torch.uint8, "torch BoolStorage": torch.bool,
}  # fmt: skip
# Calls that give back their first argument: a list with the type of its elements.
_TYPED = {f"torch.jit._pickle build_{kind}list" for kind in ("int", "double", "bool", "tensor")} | {
    "torch.jit._pickle restore_type_tag"
}


class ArchiveError(ValueError):
    """The archive is damaged, or holds what is not read without running it."""


@dataclass(frozen=True, eq=False)
class _Name:
    """A class or a function that the pickle names. It stays a name."""

    text: str


@dataclass(eq=False)
class _Module:
    """A module of the tree: its attributes by name."""

    attributes: dict[str, Any] = field(default_factory=dict)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a zip with TorchScript's constants; False for all that is no whole zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except _BROKEN:
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """All tensors of an archive's module tree by dotted names, as its `state_dict` would name them.

    Raises:
        UserError: the archive is damaged, or is built by code of its own, which is not run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            storages = _Storages(archive, path.stat().st_size)
            return dict(_tensors(_Machine(storages).run(storages.structure())))
    except _BROKEN as error:
        raise UserError(f"{path} is no TorchScript archive that can be read: {first_line(error)}") from None


# What `zipfile` raises over damaged files, beside our own.
_BROKEN = (
    ValueError, zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError,
    KeyError, OverflowError, MemoryError,
)  # fmt: skip


class _Storages:
    """The archive's files. Together they hold no more bytes than the archive: no bomb unpacks from it."""

    def __init__(self, archive: zipfile.ZipFile, num_bytes: int) -> None:
        self._archive, self._left, self._read = archive, num_bytes, dict[str, Tensor]()
        found = [n for n in archive.namelist() if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(found) != 1:
            raise ArchiveError(f"expected one data.pkl, found {len(found)}")
        self._root = found[0].removesuffix("data.pkl")
        order = f"{self._root}byteorder"
        if order in archive.namelist() and self._content(order).numpy().tobytes() != b"little":
            raise ArchiveError("its numbers are not in little-endian order")

    def structure(self) -> bytes:
        """data.pkl."""
        return self._content(f"{self._root}data.pkl", most=_MOST_STRUCTURE).numpy().tobytes()

    def storage(self, kind: object, key: object, numel: object) -> Tensor:
        """(numel,): the numbers of `data/<key>`."""
        dtype = _DTYPES.get(kind.text) if isinstance(kind, _Name) else None
        if dtype is None or not isinstance(key, str) or not _is_count(numel):
            raise ArchiveError(f"it has numbers of an unknown kind: {_told(kind)}")
        if key not in self._read:
            self._read[key] = self._content(f"{self._root}data/{key}")
        content, wanted = self._read[key], numel * dtype.itemsize
        if content.numel() < wanted:
            raise ArchiveError(f"data/{key} has {content.numel()} bytes, its tensors need {wanted}")
        return content[:wanted].view(dtype)

    def _content(self, name: str, *, most: int | None = None) -> Tensor:
        """uint8: a file's bytes."""
        info = self._archive.getinfo(name)
        size = info.file_size
        if info.compress_type != zipfile.ZIP_STORED or size > min(self._left, most or self._left):
            raise ArchiveError(f"{name} is compressed, or larger than the archive allows")
        self._left -= size
        content = bytearray(self._archive.read(info))
        if len(content) < size:
            raise ArchiveError(f"{name} ends early")
        return torch.from_numpy(np.frombuffer(content, np.uint8))


def _told(value: object) -> str:
    """A name, or the type of anything else: a nest of tuples may be too large to be printed."""
    return repr(value.text[:80]) if isinstance(value, _Name) else type(value).__name__


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**62


_MARK = object()


class _Machine:
    """Follows the pickle's opcodes. Every unknown opcode, and every call but those below, ends it."""

    def __init__(self, storages: _Storages) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._do: dict[str, Callable[[Any], None]] = {
            "PROTO": lambda _: None,
            "GLOBAL": lambda text: self._stack.append(_Name(text)),
            "MARK": lambda _: self._stack.append(_MARK),
            "NONE": lambda _: self._stack.append(None),
            "NEWTRUE": lambda _: self._stack.append(True),
            "NEWFALSE": lambda _: self._stack.append(False),
            "EMPTY_TUPLE": lambda _: self._stack.append(()),
            "EMPTY_LIST": lambda _: self._stack.append([]),
            "EMPTY_DICT": lambda _: self._stack.append({}),
            "TUPLE": lambda _: self._stack.append(tuple(self._marked())),
            "TUPLE1": lambda _: self._stack.append(tuple(self._pop(1))),
            "TUPLE2": lambda _: self._stack.append(tuple(self._pop(2))),
            "TUPLE3": lambda _: self._stack.append(tuple(self._pop(3))),
            "APPEND": lambda _: self._append(self._pop(1)),
            "APPENDS": lambda _: self._append(self._marked()),
            "SETITEM": lambda _: self._set_items(self._pop(2)),
            "SETITEMS": lambda _: self._set_items(self._marked()),
            "BINPERSID": lambda _: self._persistent(*self._pop(1)),
            "NEWOBJ": lambda _: self._new(*self._pop(2)),
            "REDUCE": lambda _: self._reduce(*self._pop(2)),
            "BUILD": lambda _: self._build(*self._pop(1)),
        }
        for name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"):
            self._do[name] = self._stack.append
        for name in ("BINPUT", "LONG_BINPUT"):
            self._do[name] = self._remember
        for name in ("BINGET", "LONG_BINGET"):
            self._do[name] = lambda index: self._stack.append(self._memo[index])

    def run(self, pickled: bytes) -> Any:
        """What the pickle describes."""
        with warnings.catch_warnings(action="ignore"):  # strange escapes, in opcodes that are not known here
            for opcode, argument, _ in pickletools.genops(pickled):
                if opcode.name == "STOP":
                    break
                if opcode.name not in self._do:
                    raise ArchiveError(f"its structure has an opcode {opcode.name}")
                self._do[opcode.name](argument)
        return self._pop(1)[0]

    def _pop(self, count: int) -> list[Any]:
        values = self._stack[len(self._stack) - count :] if len(self._stack) >= count else [_MARK]
        if any(value is _MARK for value in values):
            raise ArchiveError("its structure is damaged")
        del self._stack[-count:]
        return values

    def _marked(self) -> list[Any]:
        """What stands above the last mark."""
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                values = self._stack[place + 1 :]
                del self._stack[place:]
                return values
        raise ArchiveError("its structure is damaged")

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise ArchiveError("its structure is damaged")
        return self._stack[-1]

    def _remember(self, index: int) -> None:
        self._memo[index] = self._top(object)

    def _append(self, values: list[Any]) -> None:
        self._top(list).extend(values)

    def _set_items(self, values: list[Any]) -> None:
        target, keys = self._top(dict), values[::2]
        if len(values) % 2 or not all(isinstance(key, str | int) for key in keys):
            raise ArchiveError("its structure is damaged")
        target.update(zip(keys, values[1::2], strict=True))

    def _persistent(self, value: Any) -> None:
        if not isinstance(value, tuple) or len(value) != 5 or value[0] != "storage":
            raise ArchiveError("its structure is damaged")
        self._stack.append(self._storages.storage(value[1], value[2], value[4]))

    def _new(self, kind: Any, arguments: Any) -> None:
        if not isinstance(kind, _Name) or not kind.text.startswith("__torch__") or arguments != ():
            raise ArchiveError(f"it has an object of another kind than a module: {_told(kind)}")
        self._stack.append(_Module())

    def _build(self, state: Any) -> None:
        module = self._top(_Module)
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise ArchiveError("it builds a module by code of its own, which is not run")
        module.attributes.update(state)

    def _reduce(self, function: Any, arguments: Any) -> None:
        name = function.text if isinstance(function, _Name) else ""
        if name == "torch._utils _rebuild_tensor_v2" and isinstance(arguments, tuple) and len(arguments) >= 4:
            value: Any = _rebuilt(*arguments[:4])
        elif name == "collections OrderedDict" and arguments == ():
            value = {}
        elif name in _TYPED and isinstance(arguments, tuple) and arguments:
            value = arguments[0]
        else:
            raise ArchiveError(f"it calls {_told(function)}, which is not done")
        self._stack.append(value)


def _rebuilt(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    """A copy of a view of a storage that lies inside it and repeats none of its numbers."""
    plain = isinstance(storage, Tensor) and isinstance(shape, tuple) and isinstance(strides, tuple)
    if (
        not plain
        or len(shape) != len(strides)
        or len(shape) > 8
        or not all(map(_is_count, (offset, *shape, *strides)))
    ):
        raise ArchiveError("a tensor's shape is damaged")
    numel = math.prod(shape)
    last = (
        offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if numel else 0
    )
    if last >= max(1, storage.numel()) or numel > storage.numel():
        raise ArchiveError(f"a tensor of shape {shape} reaches beyond its {storage.numel()} numbers")
    return torch.as_strided(storage, shape, strides, offset if numel else 0).clone()


def _tensors(root: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors by dotted names. A module that is met again (it may contain itself) is named once."""
    if not isinstance(root, _Module):
        raise ArchiveError("it holds no module")
    seen, open_ = {id(root)}, [("", 0, root)]
    while open_:
        prefix, depth, module = open_.pop()
        if depth > _DEEPEST:
            raise ArchiveError("its modules are nested too deep")
        for name, value in module.attributes.items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            elif isinstance(value, _Module) and id(value) not in seen:
                seen.add(id(value))
                open_.append((f"{prefix}{name}.", depth + 1, value))
