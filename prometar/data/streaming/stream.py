"""Batches of a plan, made in threads of this process. `raystream` makes equal ones on Ray Data."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prometar.data.datasets.dataset import Source
from prometar.data.streaming.plan import Plan, Rows
from prometar.data.streaming.transforms import make_images
from prometar.environment import num_cpus


class Batch(NamedTuple):
    """Images of one step.

    Attributes:
        step: Number in the plan, from 0.
        images: uint8 (B, H, W, 3), writable.
        labels: int64 (B,).
    """

    step: int
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


Stream = Callable[[Plan, Source, int], Iterator[Batch]]
"""Streams a plan's batches from a step on: `stream_local`, or `raystream.stream` with its options."""


@dataclass(frozen=True)
class StreamOptions:
    """Options of Ray Data. They change neither pixels nor order.

    Args:
        num_cpus: Logical CPUs of a task (default 0.5). Inside a placement group it must fit a bundle.
        max_tasks: Tasks at a time (default 1).
        block_rows: Rows that a task makes, in whole steps (default 64).
        memory_bytes: Bound on finished blocks that wait for a slow consumer (default 128 MiB).
    """

    num_cpus: float = 0.5
    max_tasks: int = 1
    block_rows: int = 64
    memory_bytes: int = 2**27

    @classmethod
    def in_bundle(cls, cpus: float) -> "StreamOptions":
        """Options that use up a placement-group bundle of `cpus`: a task for each whole CPU, at least one."""
        tasks = max(1, math.floor(cpus))
        return cls(num_cpus=cpus / tasks, max_tasks=tasks)


def without_pixels(plan: Plan, source: Source, start_step: int = 0) -> Iterator[Batch]:
    """Yield the plan's batches from `start_step` on, with empty images: only labels are made."""
    for step, _, labels in steps(plan, start_step):
        yield Batch(step, np.empty((len(labels), 0, 0, 3), np.uint8), labels)


def steps(plan: Plan, start_step: int) -> Iterator[tuple[int, Rows, NDArray[np.int64]]]:
    """Yield each step's number, its rows and their labels, from `start_step` on."""
    labels = np.array([item.label for item in plan.items], np.int64)
    for step in range(start_step, plan.num_steps):
        rows = plan.rows(*plan.step_rows(step))
        yield step, rows, labels[rows.image]


def stream_local(plan: Plan, source: Source, start_step: int = 0) -> Iterator[Batch]:
    """Yield the plan's batches from `start_step` on, made in threads of this process.

    Raises:
        WorkError: a broken image. The message names it.
        UserError: an image is missing.
    """

    def make(step: int, rows: Rows, labels: NDArray[np.int64]) -> Batch:
        paths = [plan.items[k].path for k in rows.image]
        return Batch(step, make_images(plan.transform, source.read_many(paths), rows.seed, paths), labels)

    threads = num_cpus()
    ahead = deque[Future[Batch]]()
    with ThreadPoolExecutor(threads) as pool:
        for each in steps(plan, start_step):
            ahead.append(pool.submit(make, *each))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
