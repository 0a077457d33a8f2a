"""Image orders, which determine the order and the pixels of all images, identically on every machine.

A row is one image in one epoch. Rows are numbered from 0 to epochs * rows_per_epoch - 1. The content of
the k-th row of an epoch does not depend on the batch size, Ray Data's block size or the worker. The
augmentation seed of a row determines its random crop, flip and jitter.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
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
    """Return an epoch's order, as indices of images, and the augmentation seed (63 bits) of each image."""
    order_seq, seed_seq = np.random.SeedSequence([seed, epoch]).spawn(2)
    order = np.arange(num_items)
    if shuffle:
        order = np.random.Generator(np.random.PCG64(order_seq)).permutation(num_items)
    # Any generator would do, but a change from Philox would alter the batches (see `FORMAT`).
    numbers = np.random.Philox(seed_seq).random_raw(num_items)
    seeds = (numbers >> np.uint64(1)).astype(np.int64)
    # The arrays are cached and shared by all callers, so none may change them.
    order.flags.writeable = False
    seeds.flags.writeable = False
    return order, seeds


@dataclass(frozen=True)
class ImageOrder:
    """Images with their order, transform and batches.

    Args:
        items: Images of an epoch.
        transform: Transform of each image.
        batch_size: Rows per batch. Each step uses one batch, with rows of a single epoch. Default: 4.
        epochs: Number of passes over the items. Default: 1.
        seed: Seed of the order and the augmentation. Default: 0.
        shuffle: True (default) for a new order in each epoch.
        drop_last: True (default) to drop the last batch of an epoch if it is incomplete and not the only
            one, as in the published code.

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
        """Number of rows per epoch, without the rows of a dropped batch."""
        num_full_batches = len(self.items) // self.batch_size
        if self.drop_last and num_full_batches > 0:
            return num_full_batches * self.batch_size
        return len(self.items)

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
            end = min(first + stop - start, self.rows_per_epoch)  # at most the rest of this epoch
            order, seed_by_item = _order_and_seeds(len(self.items), self.seed, epoch, self.shuffle)
            epoch_indices = order[first:end]
            indices.append(epoch_indices)
            seeds.append(seed_by_item[epoch_indices])
            start += end - first
        return np.concatenate(indices), np.concatenate(seeds)

    def row_range(self, step: int) -> tuple[int, int]:
        """Return the first row of a step, and the row after the step's last row."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = epoch * self.rows_per_epoch + batch * self.batch_size
        epoch_end = (epoch + 1) * self.rows_per_epoch
        return start, min(start + self.batch_size, epoch_end)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that determines the batches. Equal digests mean equal batches."""
        transform = asdict(self.transform)
        if not self.transform.exif_rotation:  # so that orders of benchmarks keep their digests
            del transform["exif_rotation"]
        if self.transform.views == 1:  # so that orders of version 0.2 keep their digests
            del transform["views"]
        settings: dict[str, object] = {"format": FORMAT, "transform": transform}
        for field in fields(self):
            if field.name not in ("items", "transform"):
                settings[field.name] = getattr(self, field.name)
        state = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for item in self.items:
            state.update(json.dumps([item.path, item.label]).encode() + b"\n")
        return state.hexdigest()


def eval_order(
    items: Sequence[Item], *, size: int, batch_size: int = EVAL_BATCH_SIZE, exif_rotation: bool = False
) -> ImageOrder:
    """Return the image order of an evaluation: one pass over all items in their order, with center crops.

    Args:
        size: Side of the square images in pixels.
        batch_size: Images per batch. Default: 64.
        exif_rotation: As for `TransformSpec`.

    Raises:
        UserError: `items` is empty.
    """
    spec = TransformSpec(size=size, train=False, exif_rotation=exif_rotation)
    return ImageOrder(tuple(items), spec, batch_size=batch_size, epochs=1, shuffle=False, drop_last=False)
