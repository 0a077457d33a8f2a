"""Stream of an image order's batches from Ray Data, which processes all epochs in one execution.

A trial reserves its CPUs in a placement group of Ray, which has two bundles. The training process uses the
first bundle. The tasks of Ray Data use the second, so that they can start even if trials occupy every CPU.

The Ray dataset is created by `from_items`, because other sources need read tasks. Ray Data places read tasks
outside the placement group, where they may never get a CPU.
"""

import gc
import logging
import math
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy
from ray.data.block import BlockAccessor
from ray.exceptions import OutOfDiskError, OutOfMemoryError, RayError, RayTaskError
from ray.util import get_current_placement_group
from ray.util.annotations import RayDeprecationWarning
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from prometar.data.datasets.dataset import Source
from prometar.data.streaming.order import ImageOrder
from prometar.data.streaming.stream import Batch, iter_steps
from prometar.data.streaming.transforms import TransformSpec, make_images
from prometar.errors import InfrastructureError, PrometarError, WorkError, last_line

MAX_STORED_IMAGES = 10_000  # per image order, in Ray's object store (about 1 GB of JPEG files)
PAUSE_SECONDS = 0.02  # per iteration of Ray Data's scheduling loop


def stream(
    order: ImageOrder,
    source: Source,
    start_step: int = 0,
    *,
    cpus: float = 0.5,
    block_rows: int = 64,
    memory_bytes: int = 2**27,
) -> Iterator[Batch]:
    """Yield the same batches as `stream_local`, made by Ray tasks. No option changes the batches.

    Ray must be running. To stop the tasks early, close the iterator or delete the last reference to it.

    Args:
        cpus: Logical CPUs for all tasks together. Up to max(1, floor(cpus)) tasks run in parallel.
        block_rows: Approximate number of images per block (the output of a task). Blocks never split a batch.
        memory_bytes: Maximum total size of finished blocks that wait to be consumed. Default: 128 MiB.

    Raises:
        WorkError: an image is corrupt (the message contains its path), or a task failed for another reason.
        UserError: an image is missing.
        InfrastructureError: Ray's object store and its disk are full, or the disk or the store of the images
            fails.
        MemoryError: a task was killed because memory was exhausted.
    """
    if start_step == order.num_steps:
        return
    with _data_context(memory_bytes):
        # Only the iterator may refer to the dataset, so that closing the iterator frees finished blocks.
        blocks = _iter_blocks(_build_dataset(order, source, start_step, cpus, block_rows))
    images = np.empty(0, np.uint8)  # images of the current block that are not in a batch yet
    try:
        for step, _, _, labels in iter_steps(order, start_step):
            if not len(images):
                images = _next_block(blocks, step)
            size = len(labels)
            yield Batch(step, images[:size].copy(), labels)  # a block is a read-only view of shared memory
            images = images[size:]
    except GeneratorExit:
        blocks.close()
        gc.collect()  # reference cycles of Ray Data hold finished blocks
        raise


class SchedulingPause:
    """Ray Data callback that slows down the scheduling loop, a thread of the training process.

    Without this pause, the loop of Ray 2.60 polls continuously while finished blocks wait to be consumed, and
    holds the interpreter lock (GIL) for up to half of the time.
    """

    def on_execution_step(self, executor: object) -> None:
        """Sleep after each iteration of the loop."""
        time.sleep(PAUSE_SECONDS)

    def before_execution_starts(self, executor: object) -> None:
        """Do nothing."""

    def after_execution_succeeds(self, executor: object) -> None:
        """Do nothing."""

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        """Do nothing."""


def _iter_blocks(dataset: ray.data.Dataset) -> Generator[NDArray[np.uint8]]:
    """Yield the images of each block. Ray's own `iter_batches` (2.60) hangs if it is closed early."""
    for block_group in dataset.iter_internal_ref_bundles():
        for ref in block_group.block_refs:
            block = BlockAccessor.for_block(ray.get(ref))
            columns = cast(dict[str, NDArray[np.uint8]], block.to_batch_format("numpy"))
            yield columns["image"]


def _next_block(blocks: Iterator[NDArray[np.uint8]], step: int) -> NDArray[np.uint8]:
    """Return the images of the next block. Convert errors of Ray as documented in `stream`.

    Args:
        step: First step of the block, for the message.
    """
    try:
        return next(blocks)
    except RayError as error:
        if isinstance(error, RayTaskError) and isinstance(error.cause, PrometarError):
            message = str(error.cause).splitlines()[0]  # Ray Data appends lines
            raise type(error.cause)(message) from None
        if isinstance(error, OutOfDiskError):
            raise InfrastructureError("Ray's object store and its disk are full. Free disk space.") from None
        if isinstance(error, OutOfMemoryError):
            raise MemoryError(last_line(str(error))) from None
        raise WorkError(f"The data stream failed at step {step}: {last_line(str(error))}") from error


def _build_dataset(
    order: ImageOrder, source: Source, start_step: int, cpus: float, block_rows: int
) -> ray.data.Dataset:
    """Build a Ray dataset whose blocks contain the images of consecutive steps. Each task makes one block.

    If a task made several blocks, it would keep its CPU until they are consumed. Between two epochs, nothing
    consumes the training stream, so the evaluation would wait forever for this CPU.
    """
    steps_per_block = max(1, block_rows // order.batch_size)
    max_tasks = max(1, math.floor(cpus))
    block_inputs = []
    for first_step in range(start_step, order.num_steps, steps_per_block):
        last_step = min(first_step + steps_per_block, order.num_steps) - 1
        start_row, _ = order.row_range(first_step)
        _, end_row = order.row_range(last_step)
        indices, seeds = order.rows(start_row, end_row)
        paths = [order.items[index].path for index in indices]
        block_inputs.append({"index": indices.tolist(), "seed": seeds.tolist(), "path": paths})

    group = get_current_placement_group()
    strategy: Any = "DEFAULT"
    if group:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    dataset = ray.data.from_items(block_inputs, override_num_blocks=len(block_inputs))
    with warnings.catch_warnings():
        # The argument `scheduling_strategy` is deprecated. But if DataContext contains the strategy, Ray Data
        # 2.60 limits the finished blocks to the bundles' object-store memory, which is 0 bytes. It then
        # starts tasks only if the consumer waits.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(
            cast(Any, make_block),
            fn_kwargs={
                "spec": order.transform,
                "source": source,
                "encoded_ref": _store_images(order, source),
            },
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=cpus / max_tasks,
            compute=TaskPoolStrategy(size=min(max_tasks, len(block_inputs))),
            scheduling_strategy=strategy,
        )


def make_block(
    table: pa.Table, *, spec: TransformSpec, source: Source, encoded_ref: ray.ObjectRef | None
) -> dict[str, NDArray[np.uint8]]:
    """Make the images of a block in a Ray task.

    Args:
        table: One row with three lists: indices into the order's items, augmentation seeds and paths.
        encoded_ref: Result of `_store_images`.

    Returns:
        Images (block rows, size, size, 3 * views) in the column "image".
    """
    [inputs] = table.to_pylist()
    if encoded_ref is None:
        encoded = source.read_many(inputs["path"])
    else:
        stored: pa.Array = ray.get(encoded_ref)
        encoded = stored.take(pa.array(inputs["index"])).to_pylist()
    return {"image": make_images(spec, encoded, inputs["seed"], inputs["path"])}


def _store_images(order: ImageOrder, source: Source) -> ray.ObjectRef | None:
    """Store the encoded images of all items in Ray's object store, and return their reference.

    Return None if there are more than `MAX_STORED_IMAGES`, or if each image is read only once.
    """
    if order.epochs < 2 or len(order.items) > MAX_STORED_IMAGES:
        return None
    encoded = source.read_many([item.path for item in order.items])
    return ray.put(pa.array(encoded, pa.large_binary()))


@contextmanager
def _data_context(memory_bytes: int) -> Iterator[None]:
    """Set Ray Data's options for one stream. A dataset keeps the options with which it was created."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised in the consumer instead
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.raise_original_map_exception = True
    context.target_max_block_size = None  # never split a block
    context.custom_execution_callback_classes = cast(Any, [SchedulingPause])
    options = context.execution_options
    options.preserve_order = True
    options.verbose_progress = False
    options.resource_limits = ExecutionResources.for_limits(object_store_memory=memory_bytes)
    with DataContext.current(context):
        yield
