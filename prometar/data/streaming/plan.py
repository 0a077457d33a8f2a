"""Data plan: a value that determines every pixel and its order, on every machine.

A row is one image in one epoch. Rows are numbered 0 .. epochs * rows_per_epoch - 1; nothing about a row
depends on the batch size (but for how many rows of an epoch are used), the block size, or the worker.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from prometar.data.datasets.dataset import Item
from prometar.data.streaming.transforms import TransformSpec
from prometar.errors import UserError

FORMAT = 1  # raise it when the same plan would give other pixels or another order
EVAL_BATCH_SIZE = 64

Ints = NDArray[np.int64]


@lru_cache(maxsize=8)
def _epoch(num_items: int, seed: int, epoch: int, shuffle: bool) -> tuple[Ints, Ints]:
    """Return (N,) order of the images, and (N,) augmentation seeds, keyed by (seed, epoch, image)."""
    order_bits, seed_bits = np.random.SeedSequence([seed, epoch]).spawn(2)
    order = np.arange(num_items)
    if shuffle:
        order = np.random.Generator(np.random.PCG64(order_bits)).permutation(num_items)
    # Philox counts: the k-th raw number is a function of the key and k alone.
    seeds = (np.random.Philox(seed_bits).random_raw(num_items) >> np.uint64(1)).astype(np.int64)
    order.flags.writeable = seeds.flags.writeable = False
    return order, seeds


@dataclass(frozen=True)
class Plan:
    """Images, their order, their transform, and their batches.

    Args:
        items: The images, N of them.
        batch_size: Rows of a step. Batches never cross an epoch's end.
        epochs: Passes over the items.
        seed: Determines the order and the augmentation.
        shuffle: A new order each epoch.
        drop_last: Drop an epoch's last, incomplete batch if it has a full one, as the field trains.
            Evaluation keeps it.

    Raises:
        UserError: There are no items.
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
            raise UserError("there are no images to plan: check the split, the classes and the shots")

    @property
    def rows_per_epoch(self) -> int:
        """Number of rows used per epoch."""
        full = len(self.items) // self.batch_size * self.batch_size
        return full if self.drop_last and full else len(self.items)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch."""
        return -(-self.rows_per_epoch // self.batch_size)

    @property
    def num_steps(self) -> int:
        """Number of batches of all epochs."""
        return self.epochs * self.steps_per_epoch

    @property
    def num_rows(self) -> int:
        """Number of rows of all epochs."""
        return self.epochs * self.rows_per_epoch

    def rows(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """Return the rows start .. stop-1, numbered over all epochs: indices into `items`, and seeds."""
        images, seeds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while start < stop:
            epoch, first = divmod(start, self.rows_per_epoch)
            last = min(first + stop - start, self.rows_per_epoch)
            order, seed_of = _epoch(len(self.items), self.seed, epoch, self.shuffle)
            image = order[first:last]
            images.append(image)
            seeds.append(seed_of[image])
            start += last - first
        return np.concatenate(images), np.concatenate(seeds)

    def step_rows(self, step: int) -> tuple[int, int]:
        """Return the first row of a step, and the row after its last."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = epoch * self.rows_per_epoch + batch * self.batch_size
        return start, min(start + self.batch_size, (epoch + 1) * self.rows_per_epoch)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of everything that decides pixels and order; equal digests mean equal batches."""
        settings = {k: v for k, v in vars(self).items() if k not in ("items", "transform", "digest")}
        head = {"format": FORMAT, "transform": asdict(self.transform), **settings}
        state = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for item in self.items:
            state.update(json.dumps([item.path, item.label]).encode() + b"\n")
        return state.hexdigest()


def eval_plan(items: Sequence[Item], *, size: int, batch_size: int = EVAL_BATCH_SIZE) -> Plan:
    """Return the plan of an evaluation: one pass in the given order, centre crops, every image."""
    spec = TransformSpec(size=size, train=False)
    return Plan(tuple(items), spec, batch_size=batch_size, epochs=1, shuffle=False, drop_last=False)
