"""Run a plan: `stream_local` in this process (the reference), `stream` on Ray Data; equal pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prometar.data.dataset import Source
from prometar.data.plan import Plan
from prometar.data.transforms import apply


class Batch(NamedTuple):
    """One step's images.

    Attributes:
        step: Its number in the plan, from 0.
        images: uint8 (B, H, W, 3).
        labels: int64 (B,).
    """

    step: int
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def stream_local(plan: Plan, source: Source, *, start_step: int = 0) -> Iterator[Batch]:
    """The plan's batches from `start_step` on, made one after the other in this process.

    Raises:
        BrokenImage: an image cannot be decoded; the message names it.
        UserError: an image is missing.
    """
    labels = np.array([item.label for item in plan.items], np.int64)
    for step in range(start_step, plan.num_steps):
        rows = plan.rows(*plan.step_rows(step))
        paths = [plan.items[k].path for k in rows.image]
        files = source.read_many(paths)
        images = [
            apply(plan.transform, file, int(seed), path=path)
            for file, seed, path in zip(files, rows.seed, paths, strict=True)
        ]
        yield Batch(step, np.stack(images), labels[rows.image])
