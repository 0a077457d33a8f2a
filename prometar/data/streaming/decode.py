"""Make the pixels of a range of rows: what both streams, and every worker, run (no Ray, no torch)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prometar.data.streaming.plan import Rows
from prometar.data.streaming.transforms import TransformSpec, apply


def make_images(
    rows: Rows, spec: TransformSpec, paths: Sequence[str], files: Sequence[bytes]
) -> NDArray[np.uint8]:
    """uint8 (len(rows), H, W, 3) from the rows' encoded `files`; `paths` are named in messages.

    Raises:
        BrokenImage: an image cannot be decoded.
    """
    images = np.empty((len(files), spec.size, spec.size, 3), np.uint8)
    for k, (file, seed, path) in enumerate(zip(files, rows.seed, paths, strict=True)):
        images[k] = apply(spec, file, int(seed), path=path)
    return images
