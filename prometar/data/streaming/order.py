"""Image orders, which determine the order and the pixels of all images, identically on every machine.

A row is one image in one epoch. Rows are numbered from 0 to epochs * rows_per_epoch - 1. The content of
the k-th row of an epoch does not depend on the batch size, Ray Data's block size or the worker.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from prometar.data.datasets.dataset import Item
from prometar.data.streaming.transforms import TransformSpec
from prometar.errors import UserError

FORMAT = 1  # part of the digest. Increase it if a code change alters the batches of an order
EVAL_BATCH_SIZE = 64

Ints = NDArray[np.int64]


@lru_cache(maxsize=8)
def _order_and_seeds(num_items: int, seed: int, epoch: int, shuffle: bool) -> tuple[Ints, Ints]:
    """Return the order of the images, and the augmentation seed (63 bits) of each image."""
    order_seq, seed_seq = np.random.SeedSequence([seed, epoch]).spawn(2)
    order = np.arange(num_items)
    if shuffle:
        order = np.random.Generator(np.random.PCG64(order_seq)).permutation(num_items)
    # Any generator would do, but a change from Philox would alter the batches (see `FORMAT`).
    seeds = (np.random.Philox(seed_seq).random_raw(num_items) >> np.uint64(1)).astype(np.int64)
    # Callers share the cached arrays.
    order.flags.writeable = False
    seeds.flags.writeable = False
    return order, seeds


@dataclass(frozen=True)
class ImageOrder:
    """Images with their order, transform and batches.

    Args:
        items, transform: Images of an epoch, and the transform of each image.
        batch_size: Rows per batch. Each step uses one batch, with rows of a single epoch.
        epochs: Number of passes over the items.
        seed: Seed of the order and the augmentation.
        shuffle: True for a new order in each epoch.
        drop_last: True to drop the last batch of an epoch if it is incomplete and not the only one, as in
            the published code.

    Raises:
        UserError: `items` is empty.
    """

    items: tuple[Item, ...]
    transform: TransformSpec
    batch_size: int = 4
    epochs: int = 1
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = True

    def __post_init__(self) -> None:
        if not self.items:
            raise UserError("There are no images. Check the split, the classes and the shots.")

    @property
    def rows_per_epoch(self) -> int:
        """Number of rows per epoch, without those of a dropped batch."""
        in_full_batches = len(self.items) // self.batch_size * self.batch_size
        return in_full_batches if self.drop_last and in_full_batches else len(self.items)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch."""
        return math.ceil(self.rows_per_epoch / self.batch_size)

    @property
    def num_steps(self) -> int:
        """Number of batches in all epochs."""
        return self.epochs * self.steps_per_epoch

    @property
    def num_rows(self) -> int:
        """Number of rows in all epochs."""
        return self.epochs * self.rows_per_epoch

    def rows(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """Return the indices into `items` and the augmentation seeds of the rows `start` to `stop` - 1."""
        indices = [np.empty(0, np.int64)]  # so that an empty range gives empty arrays
        seeds = [np.empty(0, np.int64)]
        while start < stop:
            epoch, first = divmod(start, self.rows_per_epoch)
            end = min(first + stop - start, self.rows_per_epoch)
            order, epoch_seeds = _order_and_seeds(len(self.items), self.seed, epoch, self.shuffle)
            indices.append(order[first:end])
            seeds.append(epoch_seeds[order[first:end]])
            start += end - first
        return np.concatenate(indices), np.concatenate(seeds)

    def row_range(self, step: int) -> tuple[int, int]:
        """Return the first row of a step, and the row after the step's last row."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = epoch * self.rows_per_epoch + batch * self.batch_size
        return start, min(start + self.batch_size, (epoch + 1) * self.rows_per_epoch)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that determines the batches. Equal digests mean equal batches."""
        others = ("items", "transform", "digest")
        fields = {name: value for name, value in vars(self).items() if name not in others}
        transform = asdict(self.transform)
        if not self.transform.exif_rotation:  # so that orders of benchmarks keep their digests
            del transform["exif_rotation"]
        if self.transform.views == 1:  # so that orders of version 0.2 keep their digests
            del transform["views"]
        head = {"format": FORMAT, "transform": transform, **fields}
        state = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for item in self.items:
            state.update(json.dumps([item.path, item.label]).encode() + b"\n")
        return state.hexdigest()


def eval_order(
    items: Sequence[Item], *, size: int, batch_size: int = EVAL_BATCH_SIZE, exif_rotation: bool = False
) -> ImageOrder:
    """Return the image order of an evaluation: one pass over all items in their order, with center crops."""
    spec = TransformSpec(size=size, train=False, exif_rotation=exif_rotation)
    return ImageOrder(tuple(items), spec, batch_size=batch_size, epochs=1, shuffle=False, drop_last=False)
