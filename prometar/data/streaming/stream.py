"""Batches of an `ImageOrder`.

`stream_local` makes batches in threads of this process. The module `raystream` makes identical batches with
Ray Data. `stream_labels` makes batches without pixels, for images whose features are cached.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prometar.data.datasets.dataset import Source
from prometar.data.streaming.order import ImageOrder, Ints
from prometar.data.streaming.transforms import make_images
from prometar.environment import num_cpus


class Batch(NamedTuple):
    """Images and labels of one step.

    Attributes:
        step: Index of the batch in its order, from 0.
        images: uint8 (batch, height, width, 3 * views), writable. The views of an image are its different
            augmentations, which are stacked in the channels.
        labels: int64 (batch,).
    """

    step: int
    images: NDArray[np.uint8]
    labels: Ints


StreamFn = Callable[[ImageOrder, Source, int], Iterator[Batch]]
"""Function that yields an order's batches from a given step on.

`stream_local`, `raystream.stream` and `stream_labels` are such functions.
"""


def stream_labels(order: ImageOrder, source: Source, start_step: int = 0) -> Iterator[Batch]:
    """Yield the order's batches from `start_step` on, with labels but no pixels. `source` is not used."""
    for step, _, _, labels in iter_steps(order, start_step):
        no_pixels = np.empty((len(labels), 0, 0, 3), np.uint8)
        yield Batch(step, no_pixels, labels)


def iter_steps(order: ImageOrder, start_step: int) -> Iterator[tuple[int, Ints, Ints, Ints]]:
    """Yield (step, indices into the order's items, augmentation seeds, labels) from `start_step` on."""
    labels = np.array([item.label for item in order.items], np.int64)
    for step in range(start_step, order.num_steps):
        indices, seeds = order.rows(*order.row_range(step))
        yield step, indices, seeds, labels[indices]


def stream_local(order: ImageOrder, source: Source, start_step: int = 0) -> Iterator[Batch]:
    """Yield the order's batches from `start_step` on, made in threads of this process.

    Raises:
        WorkError: an image is corrupt. The message contains its path.
        UserError: an image is missing.
        InfrastructureError: the disk or the store of the images fails.
    """

    def make_batch(step: int, indices: Ints, seeds: Ints, labels: Ints) -> Batch:
        paths = [order.items[index].path for index in indices]
        encoded = source.read_many(paths)
        return Batch(step, make_images(order.transform, encoded, seeds, paths), labels)

    num_threads = num_cpus()
    max_pending = 2 * num_threads  # limits the batches in memory if the consumer is slow
    pending: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for step, indices, seeds, labels in iter_steps(order, start_step):
            pending.append(pool.submit(make_batch, step, indices, seeds, labels))
            if len(pending) > max_pending:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
