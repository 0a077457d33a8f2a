"""How much of a machine's memory a run takes, known before it begins."""

from __future__ import annotations

from prometar.config.settings import Config
from prometar.training.counts import memory_of
from prometar.training.run import DTYPES

PROCESSES = 950 * 2**20
"""Bytes that a trainer and its stream's task hold before any tensor: Python, torch, Ray and open_clip."""
_OF_WEIGHTS = 4  # what a configuration's iteration takes at most beside the weights themselves
_SMALL = 0.5  # of the processes: less is in the error of what they take


def process_memory(
    config: Config,
    *,
    weights: int,
    num_classes: int,
    images: int = 0,
    configurations: int = 1,
    on_gpu: bool = False,
) -> int:
    """Bytes that a run of a configuration takes on a machine, or several that are trained in lockstep.

    What the processes hold, and the peak of an iteration as it is counted on fake tensors (`memory_of`, a few
    seconds). Where the weights are so small that it cannot matter, a multiple of them stands for it.

    Args:
        weights: Bytes of the backbone's tensors. images: Of what it is scored on and keeps (`kept_bytes`).
        on_gpu: Whether an iteration's tensors are in a GPU's memory, and not in the machine's.

    Example:
        >>> process_memory(Config(), weights=30 * 2**20, num_classes=12) / 2**30 < 1.1
        True
    """
    process = PROCESSES + images
    if on_gpu:
        return process + weights
    roughly = weights * (1 + _OF_WEIGHTS * configurations)
    if roughly < _SMALL * PROCESSES:
        return process + roughly
    together = None if configurations == 1 else configurations
    dtype = DTYPES[config.backbone.precision]
    try:
        counted = memory_of(config, num_classes=num_classes, dtype=dtype, configurations=together)
    except Exception:  # a part of the user's own may need data, and is no reason not to run it
        return process + roughly
    return process + counted.peak
