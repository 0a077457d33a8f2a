"""The data plan: a pure value that decides every pixel and its order, wherever and however it is run.

A row is one image in one epoch. Rows are numbered 0 .. epochs * rows_per_epoch - 1; nothing about a row
depends on the batch size (but for how many rows of an epoch are used), the block size, or the worker.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prometar.data.datasets.dataset import Item
from prometar.data.streaming.transforms import TransformSpec
from prometar.errors import UserError

FORMAT = 1  # raise it when the same plan would give other pixels or another order
EVAL_BATCH_SIZE = 64

Ints = NDArray[np.int64]


class Rows(NamedTuple):
    """Arrays of equal length: the index into `items`, and the image's seed."""

    image: Ints
    seed: Ints


@lru_cache(maxsize=8)
def _epoch(num_items: int, seed: int, epoch: int, shuffle: bool) -> tuple[Ints, Ints]:
    """(N,) order of the images, and (N,) augmentation seeds *by image*: keyed by (seed, epoch, image)."""
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
    """Which images, in which order, transformed how, in batches of how many.

    Args:
        items: The images, N of them; a label is what the batch carries.
        transform: What happens to each.
        batch_size: Rows of a step (default 4). Batches never cross an epoch's end.
        epochs: Passes over the items.
        seed: Decides the order and the augmentation.
        shuffle: A new order each epoch (default True).
        drop_last: Drop an epoch's last, incomplete batch if it has a full one (default True, as the field
            trains); evaluation keeps it.

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
        """Rows used of each epoch."""
        full = len(self.items) // self.batch_size * self.batch_size
        return full if self.drop_last and full else len(self.items)

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return -(-self.rows_per_epoch // self.batch_size)

    @property
    def num_steps(self) -> int:
        """Batches of all epochs."""
        return self.epochs * self.steps_per_epoch

    @property
    def num_rows(self) -> int:
        """Rows of all epochs."""
        return self.epochs * self.rows_per_epoch

    def rows(self, start: int, stop: int) -> Rows:
        """Rows start .. stop-1, numbered over all epochs."""
        if not 0 <= start <= stop <= self.num_rows:
            raise ValueError(f"rows {start}..{stop} lie outside the plan's 0..{self.num_rows}")
        images, seeds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while start < stop:
            epoch, first = divmod(start, self.rows_per_epoch)
            last = min(first + stop - start, self.rows_per_epoch)
            order, seed_of = _epoch(len(self.items), self.seed, epoch, self.shuffle)
            image = order[first:last]
            images.append(image)
            seeds.append(seed_of[image])
            start += last - first
        return Rows(np.concatenate(images), np.concatenate(seeds))

    def step_rows(self, step: int) -> tuple[int, int]:
        """First row of a step, and the row after its last; `step == num_steps` gives an empty range."""
        if not 0 <= step <= self.num_steps:
            raise ValueError(f"step {step} lies outside the plan's 0..{self.num_steps}")
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = epoch * self.rows_per_epoch + batch * self.batch_size
        return start, min(start + self.batch_size, (epoch + 1) * self.rows_per_epoch, self.num_rows)

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
    """One pass in the given order, centre crops, no image left out: what evaluation streams."""
    spec = TransformSpec(size=size, train=False)
    return Plan(tuple(items), spec, batch_size=batch_size, epochs=1, shuffle=False, drop_last=False)
