"""Encoded images in Ray's object store: read once and put once, for all processes of a Ray job.

`shared_images` starts an actor that has each set of images read by whichever machine asks first, and owns
what was read: a worker that dies takes nothing with it, and a machine that dies has its part read again.
Where there is no such actor, each process keeps its own.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray import cloudpickle
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prometar.data.datasets.dataset import Item, Source
from prometar.errors import UserError
from prometar.kept import Kept

SAMPLE = 32  # images read to estimate the size of a data set
READ_AT_ONCE = 256
CACHE_BYTES = 2**31
KEEPER = "prometar-images"


class Resident(NamedTuple):
    """References to the items' paths and, unless they are too many, to their encoded images."""

    paths: ray.ObjectRef
    images: ray.ObjectRef | None


_RESIDENT = Kept[Resident](most=CACHE_BYTES, most_each=CACHE_BYTES)


def resident(items: Sequence[Item], source: Source, resident_bytes: int) -> Resident:
    """The items' paths and, up to `resident_bytes`, their images, in the object store.

    Those of the same items and source are asked for once a process; the least recently used go when all
    together exceed 2 GiB.

    Raises:
        UserError: an image is missing.
    """
    paths = [item.path for item in items]
    state = hashlib.sha256("\0".join([str(resident_bytes), *paths]).encode())
    state.update(cloudpickle.dumps(source))
    context = ray.get_runtime_context()
    key = (context.get_node_id(), context.get_job_id(), state.hexdigest())  # a new ray.init has a new node
    found = _RESIDENT.find(key)
    if found is not None and (found.images is None or _held(found.images) is not None):
        return found
    asked = state.hexdigest(), paths, source, resident_bytes
    images = _shared(*asked, context.get_node_id()) or ray.put(_read(paths, source, resident_bytes))
    size = _nbytes(ray.get(images))
    made = Resident(ray.put(pa.array(paths, pa.string())), images if size else None)
    return _RESIDENT.put(key, made, size)


def files_of(kept: Resident, rows: NDArray[Any], source: Source) -> tuple[list[str], list[bytes]]:
    """In a task: the paths and the encoded images of `rows`; read anew where the store has lost them.

    Raises:
        UserError: an image is missing.
    """
    chosen = pa.array(rows)
    paths = ray.get(kept.paths).take(chosen).to_pylist()
    images = None if kept.images is None else _held(kept.images)
    if images is None:
        return paths, source.read_many(paths)
    return paths, [value.as_py() for value in images.take(chosen)]


@contextmanager
def shared_images() -> Iterator[None]:
    """While this is open, all processes of this Ray job share what they read."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"name": KEEPER, "get_if_exists": True, "num_cpus": 0, "max_restarts": -1}
    keeper: Any = ray.remote(_Keeper).options(scheduling_strategy=here, **options).remote()
    try:
        yield
    finally:
        ray.kill(keeper)


class _Keeper:
    """Has each set of images read once, and keeps the latest used up to 2 GiB."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[ray.ObjectRef, ray.ObjectRef]] = OrderedDict()

    def images(self, key: str, paths: list[str], source: Source, most: int, node: str) -> list[ray.ObjectRef]:
        """In a list, so that a reference comes back and not what it refers to."""
        if key in self._kept and self._size(key) is None:  # an image was missing: it may be there now
            del self._kept[key]
        if key not in self._kept:
            place = NodeAffinitySchedulingStrategy(node, soft=True)
            read: Any = ray.remote(_read_and_measure).options(
                num_cpus=0, num_returns=2, scheduling_strategy=place
            )
            self._kept[key] = read.remote(paths, source, most)
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(self._size(key) or 0 for key in self._kept) > CACHE_BYTES:
            self._kept.popitem(last=False)
        return [self._kept[key][0]]

    def _size(self, key: str) -> int | None:
        """Bytes; 0 as long as they are being read; None where that has failed."""
        size = self._kept[key][1]
        try:
            return int(ray.get(size)) if ray.wait([size], timeout=0)[0] else 0
        except RayTaskError:
            return None


def _shared(key: str, paths: list[str], source: Source, most: int, node: str) -> ray.ObjectRef | None:
    """What the job's keeper has, once it is there; None where no keeper is."""
    try:
        keeper: Any = ray.get_actor(KEEPER)
        (images,) = ray.get(keeper.images.remote(key, paths, source, most, node))
        ray.get(images)
    except (ValueError, RayActorError, ObjectLostError):  # there is none, or it has died
        return None
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    return images


def _held(images: ray.ObjectRef) -> pa.Array | None:
    """What the store holds; None where it is lost, with the keeper that owned it."""
    try:
        return ray.get(images)
    except ObjectLostError:
        return None


def _read_and_measure(paths: list[str], source: Source, most: int) -> tuple[pa.Array | None, int]:
    images = _read(paths, source, most)
    return images, _nbytes(images)


def _nbytes(images: pa.Array | None) -> int:
    return 0 if images is None else images.nbytes


def _read(paths: list[str], source: Source, most: int) -> pa.Array | None:
    """The encoded images; None where they are more than `most` bytes."""
    sample = paths[:: max(1, len(paths) // SAMPLE)][:SAMPLE]
    sampled = sum(map(len, source.read_many(sample)))
    if sampled / len(sample) * len(paths) > most:
        return None
    images: list[bytes] = []
    for k in range(0, len(paths), READ_AT_ONCE):
        images += source.read_many(paths[k : k + READ_AT_ONCE])
    return pa.array(images, pa.large_binary())
